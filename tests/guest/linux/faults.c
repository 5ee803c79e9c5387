/* Exceptions: the signal, code, address and trap number that a program is told for each. */
#include "case.h"

#include <sys/time.h>

static void read_at(void *address) { *(volatile char *)address; }
static void write_at(void *address) { *(volatile char *)address = 1; }
static void jump_to(void *address) { ((void (*)(void))address)(); }

static void stack_at(void *address)
{
	__asm__ volatile("movq %0, %%rsp; pushq $1" : : "r"(address) : "memory");
}

static void expect(const char *what, struct fault fault, int signal, int code, uint64_t address, int trap, long error)
{
	if (fault.signal != signal || fault.code != code || fault.address != address || fault.trap != (uint64_t)trap ||
	    (error >= 0 && fault.error != (uint64_t)error))
		FAIL("%s: signal %d code %d address %#lx trap %lu error %#lx; expected %d, %d, %#lx, %d, %#lx", what,
		     fault.signal, fault.code, fault.address, fault.trap, fault.error, signal, code, address, trap, error);
}

static void addresses(void)
{
	char *none = (char *)0x6000000000, *read_only = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *odd = (char *)0x8000000000000000;

	read_at(read_only);
	expect("read NULL", fault_of(read_at, NULL), SIGSEGV, SEGV_MAPERR, 0, 14, 4);
	expect("write NULL", fault_of(write_at, NULL), SIGSEGV, SEGV_MAPERR, 0, 14, 6);
	expect("jump NULL", fault_of(jump_to, NULL), SIGSEGV, SEGV_MAPERR, 0, 14, 0x14);
	expect("read nothing", fault_of(read_at, none), SIGSEGV, SEGV_MAPERR, (uint64_t)none, 14, 4);
	expect("write read-only", fault_of(write_at, read_only), SIGSEGV, SEGV_ACCERR, (uint64_t)read_only, 14, -1);
	expect("execute data", fault_of(jump_to, read_only), SIGSEGV, SEGV_ACCERR, (uint64_t)read_only, 14, 0x15);
	expect("read non-canonical", fault_of(read_at, odd), SIGSEGV, SI_KERNEL, 0, 13, 0);
	expect("write non-canonical", fault_of(write_at, odd), SIGSEGV, SI_KERNEL, 0, 13, 0);
	expect("jump non-canonical", fault_of(jump_to, odd), SIGSEGV, SI_KERNEL, 0, 13, 0);
	/* #SS is SIGBUS. */
	expect("stack non-canonical", fault_of(stack_at, odd), SIGBUS, SI_KERNEL, 0, 12, 0);
	expect("stack at nothing", fault_of(stack_at, none), SIGSEGV, SEGV_MAPERR, (uint64_t)none - 8, 14, 6);
}

/* The kernel's pages, which a program must not see. */
static void kernel_memory(void)
{
	char *kernel = (char *)0xffffffff81000000;

	expect("read kernel", fault_of(read_at, kernel), SIGSEGV, SEGV_MAPERR, (uint64_t)kernel, 14, -1);
	expect("write kernel", fault_of(write_at, kernel), SIGSEGV, SEGV_MAPERR, (uint64_t)kernel, 14, -1);
	expect("jump kernel", fault_of(jump_to, kernel), SIGSEGV, SEGV_MAPERR, (uint64_t)kernel, 14, -1);
}

#define INSTRUCTION(name, text)                                                                                \
	static void do_##name(void *argument)                                                                  \
	{                                                                                                      \
		(void)argument;                                                                                \
		__asm__ volatile(".globl at_" #name "\nat_" #name ": " text "\n" ::: "rax", "rcx", "rdx",      \
				 "memory");                                                                    \
	}                                                                                                      \
	extern char at_##name[];

INSTRUCTION(de, "xorl %%ecx, %%ecx\nidivl %%ecx")
INSTRUCTION(overflow, "movl $-1, %%ecx\nmovl $0x80000000, %%eax\ncltd\nidivl %%ecx")
INSTRUCTION(int3, "int3")
INSTRUCTION(long_int3, ".byte 0xcd, 3")
INSTRUCTION(ud2, "ud2")
INSTRUCTION(cli, "cli")
INSTRUCTION(sti, "sti")
INSTRUCTION(hlt, "hlt")
INSTRUCTION(cr3_write, "movq %%rax, %%cr3")
INSTRUCTION(cr3_read, "movq %%cr3, %%rax")
INSTRUCTION(dr7_write, "movq %%rax, %%dr7")
INSTRUCTION(rdmsr, "xorl %%ecx, %%ecx\nrdmsr")
INSTRUCTION(wrmsr, "movl $0xc0000082, %%ecx\nwrmsr")
INSTRUCTION(in, "movw $0x60, %%dx\ninb %%dx, %%al")
INSTRUCTION(out, "movw $0x80, %%dx\noutb %%al, %%dx")
INSTRUCTION(out_stub, "outb %%al, $14")
INSTRUCTION(out_request, "outb %%al, $0xe7")
INSTRUCTION(out_hello, "outl %%eax, $0xe8")
INSTRUCTION(swapgs, "swapgs")
INSTRUCTION(iretq_odd, "pushq $0\npushq $0\npushq $2\npushq $0x10\npushq $0\niretq")
INSTRUCTION(wbinvd, "wbinvd")
INSTRUCTION(lgdt, "subq $16, %%rsp\nlgdt (%%rsp)")
INSTRUCTION(lidt, "subq $16, %%rsp\nlidt (%%rsp)")
INSTRUCTION(ltr, "movw $0x40, %%ax\nltr %%ax")
INSTRUCTION(lmsw, "lmsw %%ax")
INSTRUCTION(clts, "clts")
INSTRUCTION(invlpg, "invlpg (%%rsp)")
INSTRUCTION(xsetbv, "xorl %%ecx, %%ecx\nmovl $3, %%eax\nxorl %%edx, %%edx\nxsetbv")
INSTRUCTION(null_segment, "movw $0x7ff0, %%ax\nmovw %%ax, %%ds")
INSTRUCTION(int_gate, "int $14")
INSTRUCTION(sysretq, "sysretq")

#define ILL(n) { #n, do_##n, at_##n, SIGILL, 6 }
#define GP(n) { #n, do_##n, at_##n, SIGSEGV, 13 }

static const struct {
	const char *name;
	void (*run)(void *);
	char *at;
	int signal, trap;
} privileged[] = {
	ILL(ud2),	  GP(cli),	   GP(sti),    GP(hlt),	 GP(cr3_write), GP(cr3_read),	 GP(dr7_write), GP(rdmsr),
	GP(wrmsr),	  GP(in),	   GP(out),    GP(out_stub), GP(out_request), GP(out_hello), GP(swapgs),
	GP(wbinvd),	  GP(lgdt),	   GP(lidt),   GP(ltr),	 GP(lmsw),	GP(clts),	 GP(invlpg),	GP(xsetbv),
};

static void privileged_instructions(void)
{
	int wrong = 0;

	for (size_t i = 0; i < sizeof privileged / sizeof *privileged; i++) {
		struct fault fault = fault_of(privileged[i].run, NULL);
		int offset = (int)(fault.ip - (uint64_t)privileged[i].at);
		int good = fault.signal == privileged[i].signal && fault.trap == (uint64_t)privileged[i].trap &&
			   offset >= 0 && offset < 16;

		if (!good)
			SAY("  %s: signal %d code %d trap %lu error %#lx at +%d", privileged[i].name, fault.signal, fault.code,
			    fault.trap, fault.error, offset);
		wrong += !good;
	}
	if (wrong)
		FAIL("%d instructions did not end as they should", wrong);
}

/* Of these the way differs from processor to hypervisor; they must end in a signal, and the kernel go on. */
static void refused_instructions(void)
{
	static void (*const runs[])(void *) = { do_iretq_odd, do_null_segment, do_int_gate, do_sysretq };

	for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
		struct fault fault = fault_of(runs[i], NULL);

		if (fault.signal != SIGSEGV && fault.signal != SIGILL)
			FAIL("instruction %zu: signal %d code %d trap %lu", i, fault.signal, fault.code, fault.trap);
	}
}

static void divide_errors(void)
{
	struct fault fault = fault_of(do_de, NULL);

	expect("division by zero", fault, SIGFPE, FPE_INTDIV, fault.ip, 0, 0);
	CHECK(fault.ip - (uint64_t)at_de < 8);
	fault = fault_of(do_overflow, NULL);
	expect("overflow", fault, SIGFPE, FPE_INTDIV, fault.ip, 0, 0);
}

static void breakpoints(void)
{
	struct fault fault = fault_of(do_int3, NULL);

	expect("int3", fault, SIGTRAP, SI_KERNEL, 0, 3, 0);
	CHECK(fault.ip == (uint64_t)at_int3 + 1);
	fault = fault_of(do_ud2, NULL);
	expect("ud2", fault, SIGILL, ILL_ILLOPN, (uint64_t)at_ud2, 6, 0);
}

static volatile long arrived, alarms;
static void count_trap(int signal) { (void)signal, arrived++; }
static void count_alarm(int signal) { (void)signal, alarms++; }

/* No breakpoint is lost to an interrupt that comes at the same time. */
static void breakpoints_under_a_timer(void)
{
	struct sigaction trap = { .sa_handler = count_trap }, alarm = { .sa_handler = count_alarm };
	struct itimerval often = { { 0, 1000 }, { 0, 1000 } }, never = { { 0, 0 }, { 0, 0 } };
	uint64_t end = now_ns(CLOCK_MONOTONIC) + 1000000000;
	long executed = 0;

	CHECK(!sigaction(SIGTRAP, &trap, NULL) && !sigaction(SIGALRM, &alarm, NULL));
	CHECK(!setitimer(ITIMER_REAL, &often, NULL));
	do {
		for (int i = 0; i < 20; i++, executed++)
			__asm__ volatile("int3" : : : "memory");
	} while (arrived == executed && now_ns(CLOCK_MONOTONIC) < end);
	CHECK(!setitimer(ITIMER_REAL, &never, NULL));
	if (arrived != executed || alarms < 10)
		FAIL("%ld of %ld breakpoints arrived, beside %ld alarms", arrived, executed, alarms);
}

/* INT with a vector in a byte of its own: a breakpoint, or refused where the host has no such interrupts for guests. */
static void long_int3(void)
{
	struct fault fault = fault_of(do_long_int3, NULL);

	CHECK((fault.signal == SIGTRAP && fault.ip == (uint64_t)at_long_int3 + 2) ||
	      (fault.signal == SIGILL && fault.ip == (uint64_t)at_long_int3));
	SAY("  int $3: %s", strsignal(fault.signal));
}

/* 32-bit system calls: served with the number of getpid there, or refused by a signal. */
static void int_80(void)
{
	int result = 20;
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		__asm__ volatile("int $0x80" : "+a"(result) : : "memory", "r8", "r9", "r10", "r11");
		_exit(result == getpid() || result == -ENOSYS ? 0 : 1);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK(status == 0 || (WIFSIGNALED(status) && (WTERMSIG(status) == SIGSEGV || WTERMSIG(status) == SIGILL)));
	SAY("  int $0x80: %s", status ? strsignal(WTERMSIG(status)) : "served");
}

static volatile int traps;
static volatile uint64_t trap_ip;

static void on_trap(int signal, siginfo_t *info, void *context)
{
	greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;

	(void)signal;
	if (info->si_code != TRAP_TRACE)
		FAIL("code %d of a trap", info->si_code);
	trap_ip = (uint64_t)registers[REG_RIP];
	if (++traps == 20)
		registers[REG_EFL] &= ~0x100;
}

static void trap_flag(void)
{
	long result = SYS_getppid, count = 0;

	handle(SIGTRAP, on_trap, 0);
	__asm__ volatile("pushfq; orq $0x100, (%%rsp); popfq\n syscall\n 1: incq %1; cmpq $1000, %1; jne 1b"
			 : "+a"(result), "+r"(count) : : "rcx", "r11", "memory");
	CHECK(result == getppid() && count == 1000 && traps == 20);
}

const struct test_case fault_cases[] = {
	{ "fault-addresses", addresses },
	{ "fault-kernel-memory", kernel_memory },
	{ "fault-privileged", privileged_instructions },
	{ "fault-refused", refused_instructions },
	{ "fault-divide", divide_errors },
	{ "fault-breakpoints", breakpoints },
	{ "fault-breakpoints-under-a-timer", breakpoints_under_a_timer },
	{ "fault-long-int3", long_int3 },
	{ "fault-int80", int_80 },
	{ "fault-trap-flag", trap_flag },
	{ NULL, NULL },
};
