/* Memory: protection, growing stacks, copy on write, shared and large mappings, the vsyscall page. */
#include "case.h"

#include <sys/personality.h>
#include <sys/shm.h>

static void read_at(void *address) { *(volatile char *)address; }
static void write_at(void *address) { *(volatile char *)address = 1; }

static void protection(void)
{
	char *page = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	for (int round = 0; round < 50; round++) {
		page[4096] = (char)round;
		CHECK(mprotect(page + 4096, 4096, PROT_READ) == 0 && page[4096] == (char)round);
		if (round < 3)
			CHECK(fault_of(write_at, page + 4096).code == SEGV_ACCERR);
		CHECK(mprotect(page + 4096, 4096, PROT_NONE) == 0);
		if (round < 3)
			CHECK(fault_of(read_at, page + 4096).code == SEGV_ACCERR && !fault_of(read_at, page).signal);
		CHECK(mprotect(page + 4096, 4096, PROT_READ | PROT_WRITE) == 0);
	}
	CHECK(munmap(page + 4096, 4096) == 0 && fault_of(read_at, page + 4096).code == SEGV_MAPERR);
	page[0] = page[8192] = 1;
}

/* Code written into a page, and written anew, is what runs. */
static void code(void)
{
	unsigned char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	for (int i = 0; i < 20; i++) {
		unsigned char text[] = { 0xb8, (unsigned char)i, 0, 0, 0, 0xc3 }; /* mov $i, %eax; ret */

		CHECK(mprotect(page, 4096, PROT_READ | PROT_WRITE) == 0);
		memcpy(page, text, sizeof text);
		CHECK(mprotect(page, 4096, PROT_READ | PROT_EXEC) == 0);
		CHECK(((int (*)(void))page)() == i);
	}
}

static int deep(int depth)
{
	volatile char frame[4096];

	frame[0] = (char)depth;
	return depth ? deep(depth - 1) + frame[0] - (char)depth : 0;
}

static void stacks(void)
{
	char *grows;

	CHECK(deep(1000) == 0);
	grows = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN, -1, 0);
	CHECK(grows != MAP_FAILED);
	munmap(grows, 4096);
	grows = mmap((char *)0x5000000000, 4096, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
	for (int i = 0; i < 64; i++)
		grows[-4096 * i] = (char)i;
	for (int i = 0; i < 64; i++)
		CHECK(grows[-4096 * i] == (char)i);
}

static void copy_on_write(void)
{
	size_t size = 200 * 4096;
	char *private = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	memset(private, 1, size), memset(shared, 1, size);
	for (int child = 0; child < 4; child++) {
		pid_t pid = fork();

		if (pid == 0) {
			for (size_t i = 0; i < size; i += 4096) {
				CHECK(private[i] == 1);
				private[i] = 2, shared[i + (size_t)child + 1] = 3;
			}
			_exit(0);
		}
		wait_for(pid);
	}
	for (size_t i = 0; i < size; i += 4096)
		for (int child = 0; child < 4; child++)
			CHECK(private[i] == 1 && shared[i] == 1 && shared[i + (size_t)child + 1] == 3);
}

static void shared_memory(void)
{
	int id = shmget(IPC_PRIVATE, 1 << 20, IPC_CREAT | 0600), fd = (int)syscall(SYS_memfd_create, "memory", 0);
	char *first, *second;

	CHECK(id >= 0 && fd >= 0 && ftruncate(fd, 1 << 20) == 0);
	first = shmat(id, NULL, 0), second = shmat(id, NULL, 0);
	CHECK(first != (char *)-1 && first != second);
	first[123456] = 7;
	CHECK(second[123456] == 7);
	CHECK(shmctl(id, IPC_RMID, NULL) == 0);
	first = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	second = mmap(NULL, 1 << 20, PROT_READ, MAP_SHARED, fd, 0);
	first[654321] = 8;
	CHECK(second[654321] == 8);
}

static void large(void)
{
	size_t size = 1ul << 38;
	char *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	CHECK(map != MAP_FAILED);
	for (size_t at = 0; at < size; at += size / 64)
		map[at] = (char)(at >> 32);
	for (size_t at = 0; at < size; at += size / 64)
		CHECK(map[at] == (char)(at >> 32));
	map = mremap(map, size, size / 2, MREMAP_MAYMOVE);
	CHECK(map != MAP_FAILED && munmap(map, size / 2) == 0);
}

static void maps(void)
{
	unsigned long from, to, stack = (unsigned long)&from;
	int found = 0;
	char line[512];
	FILE *file = fopen("/proc/self/maps", "r");

	CHECK(file);
	while (fgets(line, sizeof line, file)) {
		CHECK(sscanf(line, "%lx-%lx", &from, &to) == 2);
		found |= (strstr(line, "[stack]") && from <= stack && stack < to) | !!strstr(line, "[vdso]") << 1;
	}
	CHECK(found == 3);
	CHECK(personality(0xffffffff) == 0 && personality(ADDR_NO_RANDOMIZE) == 0 &&
	      personality(0xffffffff) == ADDR_NO_RANDOMIZE);
}

static void call_vsyscall(void *argument)
{
	long (*function)(long *) = (long (*)(long *))0xffffffffff600400;

	(void)argument;
	_exit(labs(function(NULL) - time(NULL)) <= 1 ? 0 : 1);
}

static void vsyscall(void)
{
	struct fault fault = fault_of(call_vsyscall, NULL);

	if (fault.signal)
		SKIP("no vsyscall page: %s", strsignal(fault.signal));
}

static void user_faults(void)
{
#ifdef SYS_userfaultfd
	if (syscall(SYS_userfaultfd, 1) >= 0)
		return;
#endif
	SKIP("userfaultfd: %s", strerror(errno));
}

const struct test_case memory_cases[] = {
	{ "memory-protection", protection }, { "memory-code", code }, { "memory-stacks", stacks },
	{ "memory-copy-on-write", copy_on_write }, { "memory-shared", shared_memory }, { "memory-large", large },
	{ "memory-maps", maps }, { "memory-vsyscall", vsyscall }, { "memory-user-faults", user_faults }, { NULL, NULL },
};
