/* Processes: trees of them, exec, core dumps, seccomp, name spaces, and the end of one that wants all memory. */
#include "case.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/utsname.h>

/* A tree with two children at each node: its number of processes. */
static int tree(int depth)
{
	int sum = 1;

	for (int i = 0; depth && i < 2; i++) {
		int status;
		pid_t pid = fork();

		CHECK(pid >= 0);
		if (pid == 0)
			_exit(tree(depth - 1));
		CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
		sum += WEXITSTATUS(status);
	}
	return sum;
}

static void fork_tree(void) { CHECK(tree(4) == 31); }

static void exec(void)
{
	for (volatile int i = 0; i < 20; i++) {
		char number[8];
		int status;
		pid_t pid;

		snprintf(number, sizeof number, "%d", i);
		pid = i % 2 ? fork() : vfork();
		if (pid == 0) {
			execl("/proc/self/exe", "linux-cases", "--exec", number, NULL);
			_exit(255);
		}
		CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) == i);
	}
}

static int shared_value;

static int on_clone(void *argument)
{
	shared_value = *(int *)argument;
	return 7;
}

static void clone_shares_memory(void)
{
	char *stack = malloc(1 << 16);
	int value = 42, status;
	pid_t pid = clone(on_clone, stack + (1 << 16), CLONE_VM | CLONE_FILES | SIGCHLD, &value);

	CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 7 && shared_value == 42);
	pid = clone(on_clone, stack + (1 << 16), SIGCHLD, &(int){ 43 });
	CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 7 && shared_value == 42);
}

static void core_dump(void)
{
	struct rlimit none = { 0, 0 }, all = { RLIM_INFINITY, RLIM_INFINITY };
	char directory[] = "/tmp/core-XXXXXX", pattern[64] = "";
	FILE *file = fopen("/proc/sys/kernel/core_pattern", "r");
	char magic[4] = "";
	int status;
	pid_t pid;

	CHECK(file && fgets(pattern, sizeof pattern, file));
	fclose(file);
	if (strcmp(pattern, "core\n"))
		SKIP("core dumps go elsewhere: %s", pattern);
	if (setrlimit(RLIMIT_CORE, &all) != 0)
		SKIP("core dumps are not permitted");
	mkdir("/tmp", 0777);
	CHECK(mkdtemp(directory) && chdir(directory) == 0);
	pid = fork();
	if (pid == 0)
		abort();
	CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
	if (!WCOREDUMP(status))
		SKIP("the kernel writes no core dumps");
	file = fopen("core", "r");
	if (!file) { /* kernel.core_uses_pid */
		snprintf(pattern, sizeof pattern, "core.%d", pid);
		file = fopen(pattern, "r");
		CHECK(file);
		unlink(pattern);
	}
	CHECK(fread(magic, 1, 4, file) == 4 && !memcmp(magic, "\177ELF", 4));
	unlink("core");
	rmdir(directory);
	setrlimit(RLIMIT_CORE, &none);
}

static void on_sys(int signal, siginfo_t *info, void *context)
{
	greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;

	CHECK(signal == SIGSYS && info->si_code == 1 /* SYS_SECCOMP */ && info->si_syscall == SYS_getppid);
	registers[REG_RAX] = 4711;
}

static void seccomp(void)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getpgrp, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 55),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_sync, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof filter / sizeof *filter, filter };
	int status;
	pid_t pid;

	handle(SIGSYS, on_sys, 0);
	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
	CHECK(syscall(SYS_getppid) == 4711);
	CHECK(syscall(SYS_getpgrp) == -1 && errno == 55);
	pid = fork();
	if (pid == 0) {
		syscall(SYS_sync);
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
}

static void name_spaces(void)
{
	struct utsname outer, inner;
	int status;
	pid_t pid;

	CHECK(uname(&outer) == 0);
	pid = fork();
	if (pid == 0) {
		if (unshare(CLONE_NEWUSER | CLONE_NEWUTS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWNS) != 0)
			SKIP("unshare: %s", strerror(errno));
		CHECK(sethostname("elsewhere", 9) == 0 && uname(&inner) == 0 && !strcmp(inner.nodename, "elsewhere"));
		pid = fork();
		if (pid == 0)
			_exit(getpid() == 1 ? 0 : 1);
		wait_for(pid);
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
	if (WEXITSTATUS(status))
		_exit(WEXITSTATUS(status));
	CHECK(uname(&inner) == 0 && !strcmp(inner.nodename, outer.nodename));
}

/* Only in a machine of its own: elsewhere this would be everyone's memory. */
static void out_of_memory(void)
{
	int status;
	pid_t pid;

	if (!getenv("LINUX_CASES_OWN_MACHINE"))
		SKIP("not in a machine of its own");
	pid = fork();
	if (pid == 0) {
		FILE *file = fopen("/proc/self/oom_score_adj", "w");

		CHECK(file && fputs("1000", file) >= 0 && fclose(file) == 0);
		for (;;) {
			char *more = malloc(1 << 20);

			if (more)
				memset(more, 1, 1 << 20);
		}
	}
	CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	fork_tree();
}

const struct test_case process_cases[] = {
	{ "process-tree", fork_tree },	 { "process-exec", exec },	    { "process-clone", clone_shares_memory },
	{ "process-core-dump", core_dump }, { "process-seccomp", seccomp }, { "process-name-spaces", name_spaces },
	{ "process-out-of-memory", out_of_memory }, { NULL, NULL },
};
