/* Signals: their stacks, order, interruption of system calls, and what sigreturn restores. */
#include "case.h"

static volatile sig_atomic_t seen, depth, deepest;
static char *volatile stack_place;

static void on_signal(int signal, siginfo_t *info, void *context)
{
	char here;

	(void)signal, (void)info, (void)context;
	stack_place = &here;
	seen++;
}

static void alternate_stack(void)
{
	stack_t stack = { .ss_size = 1 << 16 };

	stack.ss_sp = malloc(stack.ss_size);
	CHECK(sigaltstack(&stack, NULL) == 0);
	handle(SIGUSR1, on_signal, SA_ONSTACK);
	handle(SIGUSR2, on_signal, 0);
	raise(SIGUSR1);
	CHECK(seen == 1 && stack_place >= (char *)stack.ss_sp && stack_place < (char *)stack.ss_sp + stack.ss_size);
	raise(SIGUSR2);
	CHECK(seen == 2 && (stack_place < (char *)stack.ss_sp || stack_place >= (char *)stack.ss_sp + stack.ss_size));
}

static void on_nested(int signal, siginfo_t *info, void *context)
{
	(void)info, (void)context;
	if (++depth > deepest)
		deepest = depth;
	if (depth < 20)
		raise(signal);
	depth--;
	seen++;
}

static void nested(void)
{
	sigset_t set, old;

	handle(SIGUSR1, on_nested, SA_NODEFER);
	raise(SIGUSR1);
	CHECK(deepest == 20 && seen == 20);
	/* Without SA_NODEFER the second one waits until the first is done. */
	depth = deepest = seen = 0;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	handle(SIGUSR2, on_signal, 0);
	CHECK(sigprocmask(SIG_BLOCK, &set, &old) == 0);
	raise(SIGUSR2);
	raise(SIGUSR2);
	CHECK(seen == 0);
	CHECK(sigprocmask(SIG_SETMASK, &old, NULL) == 0);
	CHECK(seen == 1);
}

static ssize_t interrupted_read(int flags, int *error)
{
	int fds[2];
	ssize_t count;
	pid_t pid, parent = getpid();
	char byte;

	CHECK(pipe(fds) == 0);
	seen = 0;
	handle(SIGUSR1, on_signal, flags);
	pid = fork();
	if (pid == 0) {
		usleep(100000);
		kill(parent, SIGUSR1);
		usleep(100000);
		CHECK(write(fds[1], "x", 1) == 1);
		_exit(0);
	}
	count = read(fds[0], &byte, 1);
	*error = errno;
	CHECK(seen == 1);
	while (waitpid(pid, NULL, 0) < 0)
		CHECK(errno == EINTR);
	return count;
}

static void restart(void)
{
	int error;

	CHECK(interrupted_read(SA_RESTART, &error) == 1);
	CHECK(interrupted_read(0, &error) == -1 && error == EINTR);
}

#define FLAGS (0x8d5ul | 1 << 10 | 1 << 18) /* arithmetic flags, DF, AC */

static void on_scramble(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)info, (void)context;
	__asm__ volatile("xorl %%ebx, %%ebx; vzeroall" ::: "rbx", "rcx", "memory");
	seen++;
}

/* All general registers and flags hold patterns while a signal arrives in the middle of a system call or a loop. */
static void registers_survive(int by_syscall)
{
	static uint64_t in[16], out[17];
	uint64_t pid = (uint64_t)getpid();

	handle(SIGUSR1, on_scramble, 0);
	for (int i = 0; i < 16; i++)
		in[i] = 0x1111111111111111ul * (uint64_t)i ^ 0xabcdef0123456789ul;
	in[0] = by_syscall ? SYS_kill : 1, in[5] = pid, in[4] = SIGUSR1; /* rax, rdi, rsi */
	__asm__ volatile("pushq %%rbp; pushq %%rbx\n"
			 "movq 8(%0), %%rbx; movq 24(%0), %%rdx; movq 32(%0), %%rsi; movq 40(%0), %%rdi\n"
			 "movq 64(%0), %%r8; movq 72(%0), %%r9; movq 80(%0), %%r10; movq 96(%0), %%r12\n"
			 "movq 104(%0), %%r13; movq 112(%0), %%r14; movq 120(%0), %%r15; movq (%0), %%rax\n"
			 "movq 48(%0), %%rbp; syscall\n"
			 "leaq %c2(%%rip), %%rcx; movq %%rax, (%%rcx); movq %%rbx, 8(%%rcx); movq %%rdx, 24(%%rcx)\n"
			 "movq %%rsi, 32(%%rcx); movq %%rdi, 40(%%rcx); movq %%rbp, 48(%%rcx)\n"
			 "movq %%r8, 64(%%rcx); movq %%r9, 72(%%rcx); movq %%r10, 80(%%rcx); movq %%r12, 96(%%rcx)\n"
			 "movq %%r13, 104(%%rcx); movq %%r14, 112(%%rcx); movq %%r15, 120(%%rcx)\n"
			 "popq %%rbx; popq %%rbp"
			 : : "c"(in), "m"(out), "i"(out)
			 : "rax", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory");
	CHECK(out[0] == 0 && seen == 1);
	for (int i = 1; i < 16; i++)
		if (i != 2 && i != 7 && i != 11 && out[i] != in[i])
			FAIL("register %d: %#lx instead of %#lx", i, out[i], in[i]);
}

static void registers(void) { registers_survive(1); }

static void on_timer(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)info, (void)context;
	__asm__ volatile("cld; xorl %%ecx, %%ecx" ::: "rcx", "cc", "memory");
	seen++;
}

/* A loop that changes no flag while a timer's signals come: direction, carry and the others have to be kept. */
static void flags(void)
{
	struct timespec period = { 0, 3000000 };
	struct itimerspec spec = { period, period };
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	timer_t timer;

	handle(SIGUSR1, on_timer, SA_RESTART);
	CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0 && timer_settime(timer, 0, &spec, NULL) == 0);
	while (seen < 50) {
		uint64_t before, after, count = 300000;

		/* CF, PF, AF, ZF, SF, DF, OF, AC */
		__asm__ volatile("pushfq; movq (%%rsp), %0; orq %3, %0; movq %0, (%%rsp); popfq\n"
				 "1: leaq -1(%2), %2; jrcxz 2f; jmp 1b\n"
				 "2: pushfq; popq %1; pushq $0x202; popfq; cld"
				 : "=&r"(before), "=&r"(after), "+&c"(count)
				 : "i"(FLAGS)
				 : "memory", "cc");
		if ((before ^ after) & FLAGS)
			FAIL("flags %#lx instead of %#lx", after, before);
	}
	timer_delete(timer);
}

static void on_info(int signal, siginfo_t *info, void *context)
{
	(void)context;
	CHECK(signal == SIGRTMIN && info->si_code == SI_QUEUE && info->si_pid == getpid());
	CHECK(info->si_value.sival_int == seen);
	seen++;
}

static void queued(void)
{
	sigset_t set;

	handle(SIGRTMIN, on_info, 0);
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN);
	sigprocmask(SIG_BLOCK, &set, NULL);
	for (int i = 0; i < 30; i++)
		CHECK(sigqueue(getpid(), SIGRTMIN, (union sigval){ .sival_int = i }) == 0);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	CHECK(seen == 30);
}

const struct test_case signal_cases[] = {
	{ "signal-alternate-stack", alternate_stack }, { "signal-nested", nested }, { "signal-restart", restart },
	{ "signal-registers", registers }, { "signal-flags", flags },	     { "signal-queued", queued },
	{ NULL, NULL },
};
