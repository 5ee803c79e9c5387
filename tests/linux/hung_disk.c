// A file system on /dev/fuse of one file, `disk`, of which reads are answered in its first and last MiB only, as by a server
// that has lost its network.  Says "ready" when it is mounted; ends, and the file system with it, when its input does.
//
// hung_disk DIRECTORY

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define SIZE (16ul << 20)
#define ANSWERED (1ul << 20)
#define ROOT FUSE_ROOT_ID
#define DISK 2

static int fuse;

static void answer(const struct fuse_in_header *to, int error, const void *data, size_t len)
{
	struct fuse_out_header header = { sizeof(header) + len, -error, to->unique };
	struct iovec parts[] = { { &header, sizeof(header) }, { (void *)data, len } };

	// Who asked may have gone.
	if (writev(fuse, parts, 2) < 0 && errno != ENOENT)
		perror("answer");
}

static struct fuse_attr attributes(unsigned long node)
{
	struct fuse_attr attr = { .ino = node, .nlink = 1, .blksize = 4096 };

	attr.mode = node == ROOT ? S_IFDIR | 0755 : S_IFREG | 0644;
	attr.size = node == ROOT ? 0 : SIZE;
	return attr;
}

static void serve(const struct fuse_in_header *in, const void *argument)
{
	static char zeros[1 << 20];

	switch (in->opcode) {
	case FUSE_INIT: {
		const struct fuse_init_in *init = argument;
		struct fuse_init_out out = { .major = FUSE_KERNEL_VERSION, .minor = init->minor };

		out.max_readahead = init->max_readahead;
		out.max_write = 4096;
		out.flags = init->flags & FUSE_ASYNC_READ;
		return answer(in, 0, &out, sizeof(out));
	}
	case FUSE_LOOKUP: {
		struct fuse_entry_out out = { .nodeid = DISK, .attr_valid = 60, .entry_valid = 60 };

		if (strcmp(argument, "disk"))
			return answer(in, ENOENT, NULL, 0);
		out.attr = attributes(DISK);
		return answer(in, 0, &out, sizeof(out));
	}
	case FUSE_GETATTR: {
		struct fuse_attr_out out = { .attr_valid = 60, .attr = attributes(in->nodeid) };

		return answer(in, 0, &out, sizeof(out));
	}
	case FUSE_OPEN:
	case FUSE_OPENDIR: {
		struct fuse_open_out out = { .fh = 1 };

		return answer(in, 0, &out, sizeof(out));
	}
	case FUSE_READ: {
		const struct fuse_read_in *read = argument;

		if (read->offset + read->size <= ANSWERED || read->offset >= SIZE - ANSWERED)
			answer(in, 0, zeros, read->size);
		return;
	}
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		return;
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR:
	case FUSE_FLUSH:
		return answer(in, 0, NULL, 0);
	default:
		return answer(in, ENOSYS, NULL, 0);
	}
}

int main(int argc, char **argv)
{
	static char request[1 << 18];
	char options[100];

	if (argc != 2)
		return 2;
	fuse = open("/dev/fuse", O_RDWR);
	snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0", fuse);
	if (fuse < 0 || mount("hung_disk", argv[1], "fuse.hung_disk", MS_NOSUID | MS_NODEV, options)) {
		perror(fuse < 0 ? "/dev/fuse" : "mount");
		return 1;
	}
	puts("ready");
	fflush(stdout);
	for (;;) {
		struct pollfd events[] = { { fuse, POLLIN, 0 }, { 0, POLLIN, 0 } };

		if (poll(events, 2, -1) < 0 || events[1].revents || events[0].revents & POLLERR)
			break;
		ssize_t len = read(fuse, request, sizeof(request));

		if (len >= (ssize_t)sizeof(struct fuse_in_header))
			serve((void *)request, request + sizeof(struct fuse_in_header));
		else if (errno != EINTR && errno != EAGAIN && errno != ENOENT)
			break;
	}
	umount2(argv[1], MNT_DETACH);
	return 0;
}
