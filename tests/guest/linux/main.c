/*
 * Usage: linux-cases [NAME...]
 *   Runs the cases of these names, or all. Prints "ok NAME", "skip NAME" or "FAIL NAME" for each, after what it has to
 *   say, and "done" at the end. The status is 0 if none failed.
 */
#include "case.h"

#define LIMIT_S 40

static const struct test_case *const all[] = { signal_cases,  fault_cases, process_cases, thread_cases, state_cases,
					       memory_cases, time_cases, channel_cases, ptrace_cases };

void handle(int signal, void (*handler)(int, siginfo_t *, void *), int flags)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = flags | SA_SIGINFO };

	CHECK(sigaction(signal, &action, NULL) == 0);
}

void use_alternate_stack(void)
{
	stack_t stack = { .ss_size = 1 << 16 };

	stack.ss_sp = malloc(stack.ss_size);
	CHECK(sigaltstack(&stack, NULL) == 0);
}

void wait_for(pid_t pid)
{
	int status;

	CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
	if (status)
		FAIL("a child ended with wait status %#x", status);
}

uint64_t now_ns(clockid_t clock)
{
	struct timespec time;

	CHECK(clock_gettime(clock, &time) == 0);
	return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static struct fault *told;

static void on_fault(int signal, siginfo_t *info, void *context)
{
	const greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;

	*told = (struct fault){ signal, info->si_code, (uint64_t)info->si_addr, (uint64_t)registers[REG_RIP],
				(uint64_t)registers[REG_TRAPNO], (uint64_t)registers[REG_ERR] };
	_exit(0);
}

struct fault fault_of(void (*function)(void *), void *argument)
{
	static const int signals[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS };
	struct fault fault;
	pid_t pid;

	if (!told)
		told = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	memset(told, 0, sizeof *told);
	pid = fork();
	if (pid == 0) {
		use_alternate_stack();
		for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
			handle(signals[i], on_fault, SA_ONSTACK);
		function(argument);
		_exit(0);
	}
	wait_for(pid);
	fault = *told;
	return fault;
}

/* Runs a case; whether it did not fail. */
static int run(const struct test_case *test)
{
	int status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		setpgid(0, 0);
		alarm(LIMIT_S);
		test->run();
		fflush(stdout);
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid) {
		perror("linux-cases");
		exit(2);
	}
	kill(-pid, SIGKILL);
	if (status == 0) {
		SAY("ok %s", test->name);
	} else if (WIFEXITED(status) && WEXITSTATUS(status) == CASE_SKIPPED) {
		SAY("skip %s", test->name);
	} else {
		SAY("FAIL %s: wait status %#x", test->name, status);
		return 0;
	}
	return 1;
}

static int is_wanted(const char *name, int count, char **names)
{
	for (int i = 0; i < count; i++)
		if (!strcmp(name, names[i]))
			return 1;
	return count == 0;
}

int main(int argc, char **argv)
{
	int good = 1;

	if (argc > 1 && !strcmp(argv[1], "--exec")) /* a case started this program anew */
		_exit(argc == 3 ? atoi(argv[2]) : 2);
	for (size_t list = 0; list < sizeof all / sizeof *all; list++)
		for (const struct test_case *test = all[list]; test->name; test++)
			if (is_wanted(test->name, argc - 1, argv + 1))
				good &= run(test);
	SAY("done");
	return !good;
}
