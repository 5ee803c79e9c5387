// Loads disks and verifies them: random reads, writes, zeroing, discards and flushes of random sizes by many threads, with
// O_DIRECT and through the page cache, on a raw disk and on files of a file system. What each block holds is known: its
// number, a sequence number, and words made of both. At last everything is read again from the disks.
//
// Usage: disk-load SECONDS SEED RAW-DISK FS-DISK
//   RAW-DISK is all zeros, FS-DISK holds an ext4, two fifths of which become files. Both are changed.
// The first line says what was done, the second is a hash of RAW-DISK's contents ("hash %016x", see hash_disk).
// Status 0 if all was as it must be, 1 if not.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, LONGEST = 512 << 10, DIRECT_THREADS = 8, BUFFERED_THREADS = 4 };

// A part of a disk, or a file. Bytes from `start`; blocks are counted from there.
struct target {
    const char *path;
    uint64_t start, blocks;
    uint32_t block, longest; // bytes: of a block, of the longest transfer
    bool direct, file;
    int fd;
    pthread_mutex_t lock;
    bool *busy;        // for each page
    uint32_t *sequence; // for each block what it holds; 0: zeros
    bool *discarded;    // for each block whether it may read as zeros instead
    _Atomic uint32_t next;
};

static _Atomic uint64_t reads, writes, zeroed, discards, flushes, bytes;
static _Atomic bool stop;
static uint64_t seed;

static _Noreturn void fail(const char *format, ...) {
    va_list list;
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fprintf(stderr, " (seed %llu)\n", (unsigned long long)seed);
    _exit(1);
}

static uint64_t mix(uint64_t x) { // the finaliser of SplitMix64
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

static uint64_t draw(uint64_t *state) { return mix(*state += 0x9e3779b97f4a7c15); }

// --- What blocks hold

static void fill(const struct target *t, uint64_t block, uint32_t sequence, uint64_t *words) {
    if (sequence == 0) {
        memset(words, 0, t->block);
        return;
    }
    uint64_t key = mix(seed ^ (t->start + block * t->block) ^ (uint64_t)sequence << 40 ^ (uint64_t)t->file << 63);
    words[0] = block;
    words[1] = sequence;
    for (uint32_t n = 2; n < t->block / 8; n++) words[n] = key += 0x9e3779b97f4a7c15;
}

static bool all_zero(const uint64_t *words, uint32_t len) {
    for (uint32_t n = 0; n < len / 8; n++)
        if (words[n]) return false;
    return true;
}

static void verify(const struct target *t, uint64_t first, uint64_t count, const void *data, const char *when) {
    uint64_t expected[PAGE / 8];
    for (uint64_t n = 0; n < count; n++) {
        const uint64_t *found = (const void *)((const char *)data + n * t->block);
        uint64_t block = first + n;
        if (t->discarded[block] && all_zero(found, t->block)) continue;
        fill(t, block, t->sequence[block], expected);
        if (memcmp(found, expected, t->block) == 0) continue;
        uint32_t word = 0;
        while (found[word] == expected[word]) word++;
        fail("%s, %s, %s: block %llu of %u bytes should hold sequence number %u%s; its first words are %llx %llx, word "
             "%u is %llx instead of %llx",
             t->path, t->direct ? "O_DIRECT" : "buffered", when, (unsigned long long)block, t->block,
             t->sequence[block], t->discarded[block] ? " or zeros" : "", (unsigned long long)found[0],
             (unsigned long long)found[1], word, (unsigned long long)found[word], (unsigned long long)expected[word]);
    }
}

// --- Ranges: a page belongs to one operation at a time

static bool take(struct target *t, uint64_t first, uint64_t count) {
    uint64_t page = first * t->block / PAGE, last = ((first + count) * t->block - 1) / PAGE;
    bool free = true;
    pthread_mutex_lock(&t->lock);
    for (uint64_t n = page; n <= last; n++) free &= !t->busy[n];
    if (free) memset(t->busy + page, true, last - page + 1);
    pthread_mutex_unlock(&t->lock);
    return free;
}

static void give(struct target *t, uint64_t first, uint64_t count) {
    uint64_t page = first * t->block / PAGE, last = ((first + count) * t->block - 1) / PAGE;
    pthread_mutex_lock(&t->lock);
    memset(t->busy + page, false, last - page + 1);
    pthread_mutex_unlock(&t->lock);
}

// --- Operations on a range that is taken

static void do_read(struct target *t, uint64_t first, uint64_t count, char *buffer, bool from_disk) {
    uint64_t offset = t->start + first * t->block, len = count * t->block;
    if (from_disk && !t->direct) {
        if (sync_file_range(t->fd, offset, len,
                            SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER))
            fail("%s: sync_file_range: %m", t->path);
        posix_fadvise(t->fd, offset, len, POSIX_FADV_DONTNEED);
    }
    memset(buffer, 0xee, len);
    ssize_t got = pread(t->fd, buffer, len, offset);
    if (got != (ssize_t)len) fail("%s: read %zd of %llu bytes: %m", t->path, got, (unsigned long long)len);
    verify(t, first, count, buffer, from_disk ? "read from the disk" : "read");
    reads++;
    bytes += len;
}

static void do_write(struct target *t, uint64_t first, uint64_t count, char *buffer) {
    uint64_t offset = t->start + first * t->block, len = count * t->block;
    for (uint64_t n = 0; n < count; n++) {
        t->sequence[first + n] = ++t->next;
        t->discarded[first + n] = false;
        fill(t, first + n, t->sequence[first + n], (uint64_t *)(buffer + n * t->block));
    }
    ssize_t put = pwrite(t->fd, buffer, len, offset);
    if (put != (ssize_t)len) fail("%s: wrote %zd of %llu bytes: %m", t->path, put, (unsigned long long)len);
    writes++;
    bytes += len;
}

// A hole in a file is zeros. What a disk holds after a discard may be zeros or what it was.
static void do_clear(struct target *t, uint64_t first, uint64_t count, bool discard) {
    uint64_t range[2] = {t->start + first * t->block, count * t->block};
    int mode = (discard ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) | FALLOC_FL_KEEP_SIZE;
    int failed = t->file ? fallocate(t->fd, mode, range[0], range[1])
                         : ioctl(t->fd, discard ? BLKDISCARD : BLKZEROOUT, range);
    if (failed) fail("%s: %s: %m", t->path, discard ? "discard" : "zero");
    for (uint64_t n = first; n < first + count; n++) {
        if (discard && !t->file) t->discarded[n] = true;
        else t->sequence[n] = 0, t->discarded[n] = false;
    }
    if (discard) discards++;
    else zeroed++;
}

static void *work(void *argument) {
    struct target *t = argument;
    static _Atomic uint64_t threads;
    uint64_t random = mix(seed + 1000 * ++threads);
    char *memory;
    if (posix_memalign((void **)&memory, PAGE, LONGEST + PAGE)) fail("no memory");
    while (!stop) {
        // Half of them of a page or two, as the most part is in life.
        uint64_t longest = draw(&random) % 2 ? 2 * PAGE : t->longest;
        uint64_t count = 1 + draw(&random) % (longest / t->block), first = draw(&random) % (t->blocks - count + 1);
        if (!take(t, first, count)) {
            sched_yield();
            continue;
        }
        // Not at the beginning of a page.
        char *buffer = memory + draw(&random) % (PAGE / t->block) * t->block;
        switch (draw(&random) % 32) {
        case 0: do_clear(t, first, count, true); break;
        case 1: do_clear(t, first, count, false); break;
        case 2:
            if (fdatasync(t->fd)) fail("%s: fdatasync: %m", t->path);
            flushes++;
            break;
        case 3 ... 17: do_write(t, first, count, buffer); break;
        case 18 ... 22: do_read(t, first, count, buffer, false); break;
        default: do_read(t, first, count, buffer, true);
        }
        give(t, first, count);
    }
    free(memory);
    return NULL;
}

// --- The whole

static void open_target(struct target *t) {
    int flags = O_RDWR | O_CLOEXEC | (t->direct ? O_DIRECT : 0) | (t->file ? O_CREAT : 0);
    t->fd = open(t->path, flags, 0600);
    if (t->fd < 0) fail("%s: open: %m", t->path);
}

static void prepare(struct target *t, uint64_t len) {
    int block = 512;
    open_target(t);
    if (len < 64 << 10) fail("%s: too small", t->path);
    if (t->file && ftruncate(t->fd, len)) fail("%s: ftruncate: %m", t->path);
    if (t->file && t->direct) block = PAGE;
    if (!t->file && ioctl(t->fd, BLKSSZGET, &block)) fail("%s: BLKSSZGET: %m", t->path);
    if (block < 512 || block > PAGE) fail("%s: blocks of %d bytes", t->path, block);
    t->block = block;
    t->blocks = len / block;
    t->longest = len / 8 < LONGEST ? len / 8 / PAGE * PAGE : LONGEST;
    t->busy = calloc(len / PAGE + 1, sizeof *t->busy);
    t->sequence = calloc(t->blocks, sizeof *t->sequence);
    t->discarded = calloc(t->blocks, sizeof *t->discarded);
    if (!t->busy || !t->sequence || !t->discarded) fail("no memory");
    pthread_mutex_init(&t->lock, NULL);
}

static void verify_all(struct target *t) {
    char *buffer;
    if (posix_memalign((void **)&buffer, PAGE, LONGEST)) fail("no memory");
    for (uint64_t first = 0; first < t->blocks; first += LONGEST / t->block) {
        uint64_t rest = t->blocks - first, count = LONGEST / t->block;
        do_read(t, first, rest < count ? rest : count, buffer, true);
    }
    free(buffer);
}

// FNV-1a over the contents as little-endian words of 8 bytes.
static uint64_t hash_disk(const char *path, uint64_t len) {
    static uint64_t words[LONGEST / 8];
    uint64_t hash = 0xcbf29ce484222325;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) fail("%s: open: %m", path);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    while (len > 0) {
        uint64_t part = len < LONGEST ? len : LONGEST;
        if (read(fd, words, part) != (ssize_t)part) fail("%s: read: %m", path);
        for (uint64_t n = 0; n < part / 8; n++) hash = (hash ^ words[n]) * 0x100000001b3;
        len -= part;
    }
    close(fd);
    return hash;
}

static uint64_t disk_len(const char *path) {
    uint64_t len = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, BLKGETSIZE64, &len)) fail("%s: no disk: %m", path);
    close(fd);
    return len;
}

static void mount_files(const char *disk) {
    mkdir("/m", 0700);
    if (mount(disk, "/m", "ext4", 0, "")) fail("cannot mount %s: %m", disk);
}

static void remount_files(struct target *targets, int count, const char *disk) {
    for (int n = 0; n < count; n++)
        if (fsync(targets[n].fd) || close(targets[n].fd)) fail("%s: fsync, close: %m", targets[n].path);
    if (umount("/m")) fail("cannot unmount %s: %m", disk);
    mount_files(disk);
    for (int n = 0; n < count; n++) open_target(&targets[n]);
}

int main(int argc, char **argv) {
    if (argc != 5) fail("usage: disk-load SECONDS SEED RAW-DISK FS-DISK");
    enum { TARGETS = 4 };
    const char *raw = argv[3], *disk = argv[4];
    pthread_t threads[TARGETS * DIRECT_THREADS];
    int count = 0;
    seed = strtoull(argv[2], NULL, 10);
    mount_files(disk);
    uint64_t half = disk_len(raw) / 2 / PAGE * PAGE, file_len = disk_len(disk) / 5 / PAGE * PAGE;
    struct target targets[TARGETS] = {
        {.path = raw, .direct = true},
        {.path = raw, .start = half},
        {.path = "/m/direct", .file = true, .direct = true},
        {.path = "/m/buffered", .file = true},
    };
    for (int n = 0; n < TARGETS; n++) {
        prepare(&targets[n], targets[n].file ? file_len : half);
        int wanted = targets[n].direct ? DIRECT_THREADS : BUFFERED_THREADS;
        if (targets[n].longest < LONGEST) wanted /= 4; // small disks are those of slow guests
        while (wanted-- > 0)
            if (pthread_create(&threads[count++], NULL, work, &targets[n])) fail("no thread");
    }
    sleep(strtoul(argv[1], NULL, 10));
    stop = true;
    while (count > 0) pthread_join(threads[--count], NULL);
    remount_files(targets, TARGETS, disk);
    for (int n = 0; n < TARGETS; n++) {
        verify_all(&targets[n]);
        close(targets[n].fd);
    }
    if (umount("/m")) fail("cannot unmount %s: %m", disk);
    printf("%llu reads, %llu writes, %llu zeroed, %llu discards, %llu flushes, %llu MB\nhash %016llx\n",
           (unsigned long long)reads, (unsigned long long)writes, (unsigned long long)zeroed,
           (unsigned long long)discards, (unsigned long long)flushes, (unsigned long long)(bytes / 1000000),
           (unsigned long long)hash_disk(raw, 2 * half));
    return 0;
}
