/*
 * The floor of containers: the bare system calls that any launcher must make for the container that
 * `tandem run --as container --profile minimal` makes, and nothing else.
 *
 * Usage: container ROOT STAGING INIT MANIFEST     STAGING is a directory to mount over.
 *
 * Kept, since the workload could tell: all namespaces but the user's, an overlay in memory over ROOT, /proc, /sys,
 * /dev with its nodes, /dev/pts, /dev/shm, /run, /tmp, host name, loopback device, capabilities, no_new_privs, the
 * read-only mount of INIT, death with the parent. MANIFEST is read by tandem-init; its reports go into a pipe.
 * Left out: reading a command line, every check and message, signals, time limits, the terminal, reports.
 *
 * Exit status: that of INIT; 125 set-up failed.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SETUP_FAILED = 125, MANIFEST_FD = 3, REPORT_FD = 4, SECURE = MS_NOSUID | MS_NODEV };
#define KEPT 0xa00425fbull /* what containers usually keep: see src/container/security/capabilities.rs */

static int check(long result, const char *what)
{
	if (result < 0)
		err(SETUP_FAILED, "%s", what);
	return result;
}
#define CHECK(call) check(call, #call)

static void mount_on(const char *kind, const char *target, unsigned long flags, const char *data)
{
	mkdir(target, 0755);
	check(mount(kind, target, kind, flags, data), target);
}

static void enter_root(const char *root, const char *staging)
{
	CHECK(dup3(CHECK(open(root, O_PATH | O_DIRECTORY | O_CLOEXEC)), 200, O_CLOEXEC));
	CHECK(mount("tandem", staging, "tmpfs", SECURE, "mode=755"));
	CHECK(chdir(staging));
	CHECK(mkdir("upper", 0755));
	CHECK(mkdir("work", 0755));
	CHECK(mkdir("root", 0755));
	CHECK(mount("tandem", "root", "overlay", MS_NODEV, "lowerdir=/proc/self/fd/200,upperdir=upper,workdir=work"));
	CHECK(chdir("root"));
	CHECK(syscall(SYS_pivot_root, ".", "."));
}

static void mount_all(void)
{
	static const struct { const char *name; int major, minor; } nodes[] = {
		{ "/dev/null", 1, 3 }, { "/dev/zero", 1, 5 }, { "/dev/full", 1, 7 },
		{ "/dev/random", 1, 8 }, { "/dev/urandom", 1, 9 }, { "/dev/tty", 5, 0 },
	};
	static const char *const links[][2] = {
		{ "/proc/self/fd", "/dev/fd" }, { "/proc/self/fd/0", "/dev/stdin" },
		{ "/proc/self/fd/1", "/dev/stdout" }, { "/proc/self/fd/2", "/dev/stderr" },
		{ "pts/ptmx", "/dev/ptmx" },
	};

	mount_on("proc", "/proc", SECURE | MS_NOEXEC, "");
	mount_on("sysfs", "/sys", SECURE | MS_NOEXEC | MS_RDONLY, NULL);
	mount_on("tmpfs", "/dev", MS_NOSUID | MS_STRICTATIME, "mode=755");
	for (unsigned i = 0; i < sizeof nodes / sizeof *nodes; i++)
		CHECK(mknod(nodes[i].name, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)));
	for (unsigned i = 0; i < sizeof links / sizeof *links; i++)
		CHECK(symlink(links[i][0], links[i][1]));
	mount_on("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,gid=5,mode=620,ptmxmode=666");
	mount_on("tmpfs", "/dev/shm", SECURE, "mode=1777");
	mount_on("tmpfs", "/run", SECURE, "mode=755");
	mount_on("tmpfs", "/tmp", SECURE, "mode=1777");
	CHECK(umount2(".", MNT_DETACH));
	CHECK(chdir("/"));
}

static void drop_privileges(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = { { KEPT, KEPT, 0 }, { 0 } };

	for (unsigned long i = 0; i <= CAP_LAST_CAP; i++)
		if (!(KEPT >> i & 1))
			CHECK(prctl(PR_CAPBSET_DROP, i, 0, 0, 0));
	CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));
	CHECK(syscall(SYS_capset, &header, data));
	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

static void child(char **argv, int parent, int manifest, int report)
{
	static char *const arguments[] = { "tandem-init", "--in-container", NULL }, *const environment[] = { NULL };
	struct mount_attr readonly = { .attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID };
	struct pollfd poll_parent = { .fd = parent, .events = POLLIN };
	struct ifreq loopback = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	int init, socket_fd;

	CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL));
	if (CHECK(poll(&poll_parent, 1, 0)))
		_exit(SETUP_FAILED);
	CHECK(dup2(manifest, MANIFEST_FD));
	CHECK(dup2(report, REPORT_FD));
	CHECK(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	init = CHECK(syscall(SYS_open_tree, AT_FDCWD, argv[3], OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
	CHECK(syscall(SYS_mount_setattr, init, "", AT_EMPTY_PATH, &readonly, sizeof readonly));
	umask(0);
	enter_root(argv[1], argv[2]);
	mount_all();
	CHECK(sethostname("tandem", 6));
	socket_fd = CHECK(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
	CHECK(ioctl(socket_fd, SIOCSIFFLAGS, &loopback));
	umask(022);
	CHECK(syscall(SYS_setgroups, 0, NULL));
	CHECK(syscall(SYS_close_range, REPORT_FD + 1, ~0u, 4 /* CLOSE_RANGE_CLOEXEC */));
	drop_privileges();
	syscall(SYS_execveat, init, "", arguments, environment, AT_EMPTY_PATH);
	err(SETUP_FAILED, "execveat");
}

int main(int argc, char **argv)
{
	int pidfd, status, pipes[2];
	struct clone_args args = {
		.flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP |
			 CLONE_PIDFD,
		.pidfd = (uintptr_t)&pidfd,
		.exit_signal = SIGCHLD,
	};
	long pid;

	if (argc != 5)
		errx(SETUP_FAILED, "usage: container ROOT STAGING INIT MANIFEST");
	int manifest = CHECK(open(argv[4], O_RDONLY | O_CLOEXEC));
	/* Above those that the child uses. */
	manifest = CHECK(fcntl(manifest, F_DUPFD_CLOEXEC, 16));
	CHECK(pipe2(pipes, O_CLOEXEC));
	int report = CHECK(fcntl(pipes[1], F_DUPFD_CLOEXEC, 16));
	int self = CHECK(syscall(SYS_pidfd_open, getpid(), 0));
	self = CHECK(fcntl(self, F_DUPFD_CLOEXEC, 16));
	pid = CHECK(syscall(SYS_clone3, &args, sizeof args));
	if (!pid)
		child(argv, self, manifest, report);
	CHECK(waitpid(pid, &status, 0));
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
