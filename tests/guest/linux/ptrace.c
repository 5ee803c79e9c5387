/* Tracing: steps, breakpoints, registers, memory and system calls of another process. */
#include "case.h"

#include <sys/ptrace.h>
#include <sys/user.h>

static pid_t traced(void (*function)(void))
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		if (ptrace(PTRACE_TRACEME, 0, 0, 0) != 0)
			_exit(CASE_SKIPPED);
		raise(SIGSTOP);
		function();
		_exit(0);
	}
	CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == CASE_SKIPPED)
		SKIP("ptrace is not permitted");
	CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
	ptrace(PTRACE_SETOPTIONS, pid, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
	return pid;
}

static int resume(int request, pid_t pid, int signal)
{
	int status;

	CHECK(ptrace(request, pid, 0, signal) == 0 && waitpid(pid, &status, 0) == pid);
	return status;
}

static struct user_regs_struct registers_of(pid_t pid)
{
	struct user_regs_struct registers;

	CHECK(ptrace(PTRACE_GETREGS, pid, 0, &registers) == 0);
	return registers;
}

static void run_to_trap(pid_t pid)
{
	int status = resume(PTRACE_CONT, pid, 0);

	CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP);
}

extern char steps_start[], steps_syscall[], steps_fault[], steps_end[];

static void steps(void)
{
	__asm__ volatile("movq $0, %%rbx\n int3\n"
			 ".globl steps_start\nsteps_start: incq %%rbx\n movl $39, %%eax\n"
			 ".globl steps_syscall\nsteps_syscall: syscall\n incq %%rbx\n pushfq\n popq %%rdx\n"
			 ".globl steps_fault\nsteps_fault: movq (%%rbx), %%rax\n"
			 ".globl steps_end\nsteps_end: incq %%rbx\n"
			 ::: "rax", "rbx", "rcx", "rdx", "r11", "memory");
}

static void single_step(void)
{
	pid_t pid = traced(steps);
	struct user_regs_struct registers;
	static const int lengths[] = { 3, 5, 2, 3, 1, 1 };
	uint64_t at = (uint64_t)steps_start, cell = 0;
	int status;

	run_to_trap(pid);
	CHECK(registers_of(pid).rip == at);
	for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
		status = resume(PTRACE_SINGLESTEP, pid, 0);
		at += (uint64_t)lengths[i];
		registers = registers_of(pid);
		if (!WIFSTOPPED(status) || WSTOPSIG(status) != SIGTRAP || registers.rip != at)
			FAIL("step %zu: status %#x at %#llx, not %#lx", i, status, registers.rip, at);
	}
	CHECK(registers.rax == (unsigned long)pid && registers.rbx == 2);
	/* The step over a load from address 2 is a fault, where it stays; with another address it goes on. */
	status = resume(PTRACE_SINGLESTEP, pid, 0);
	CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSEGV);
	registers = registers_of(pid);
	CHECK(registers.rip == (uint64_t)steps_fault);
	registers.rbx = registers.rsp - 64;
	cell = 0x1122334455667788;
	CHECK(ptrace(PTRACE_POKEDATA, pid, registers.rbx, cell) == 0);
	CHECK(ptrace(PTRACE_SETREGS, pid, 0, &registers) == 0);
	status = resume(PTRACE_SINGLESTEP, pid, 0);
	registers = registers_of(pid);
	CHECK(WSTOPSIG(status) == SIGTRAP && registers.rip == (uint64_t)steps_end && registers.rax == cell);
	ptrace(PTRACE_KILL, pid, 0, 0);
	waitpid(pid, &status, 0);
}

static volatile int called;

__attribute__((noinline)) static void callee(void) { called++; }

static void calls(void)
{
	for (int i = 0; i < 3; i++)
		callee();
	_exit(called);
}

static void breakpoint(void)
{
	pid_t pid = traced(calls);
	uint64_t at = (uint64_t)callee;
	long code = ptrace(PTRACE_PEEKTEXT, pid, at, 0);
	int status;

	CHECK(memcmp(&code, (void *)at, sizeof code) == 0);
	CHECK(ptrace(PTRACE_POKETEXT, pid, at, (code & ~0xfful) | 0xcc) == 0);
	for (int i = 0; i < 3; i++) {
		struct user_regs_struct registers;

		run_to_trap(pid);
		registers = registers_of(pid);
		CHECK(registers.rip == at + 1);
		registers.rip = at;
		CHECK(ptrace(PTRACE_SETREGS, pid, 0, &registers) == 0 && ptrace(PTRACE_POKETEXT, pid, at, code) == 0);
		status = resume(PTRACE_SINGLESTEP, pid, 0);
		CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP);
		CHECK(ptrace(PTRACE_POKETEXT, pid, at, (code & ~0xfful) | 0xcc) == 0);
	}
	status = resume(PTRACE_CONT, pid, 0);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 3);
}

static void three_calls(void)
{
	for (int i = 0; i < 3; i++)
		CHECK(syscall(SYS_lseek, 1000 + i, i, 7) == (i == 1 ? 4711 : -1));
}

static void system_calls(void)
{
	pid_t pid = traced(three_calls);

	for (int i = 0; i < 3; i++) {
		struct user_regs_struct registers;
		int status = resume(PTRACE_SYSCALL, pid, 0);

		CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == (SIGTRAP | 0x80));
		registers = registers_of(pid);
		CHECK(registers.orig_rax == SYS_lseek && registers.rdi == (unsigned)(1000 + i) && registers.rdx == 7);
		status = resume(PTRACE_SYSCALL, pid, 0);
		CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == (SIGTRAP | 0x80));
		registers = registers_of(pid);
		CHECK((long)registers.rax == -EBADF);
		registers.rax = i == 1 ? 4711 : registers.rax;
		CHECK(ptrace(PTRACE_SETREGS, pid, 0, &registers) == 0);
	}
	CHECK(resume(PTRACE_CONT, pid, 0) == 0);
}

const struct test_case ptrace_cases[] = {
	{ "ptrace-single-step", single_step },
	{ "ptrace-breakpoint", breakpoint },
	{ "ptrace-system-calls", system_calls },
	{ NULL, NULL },
};
