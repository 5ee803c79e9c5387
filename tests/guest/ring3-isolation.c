/*
 * What a user program in a ring3 guest can do to its kernel, both being at CPL 3.
 *
 * Usage: ring3-isolation closed|open NAME=ADDRESS...
 *   closed: with isolation; no attack may come to anything but its signal, or be more than a system call.
 *   open:   without; the kernel's memory has to be readable, or the attacks above prove nothing.
 * Addresses are hexadecimal: places in the kernel, as System.map has them. Wanted are at least text, data, stack, area.
 * Prints "ok", or what is wrong.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/ucontext.h>
#include <sys/wait.h>
#include <unistd.h>

#define CAME_BACK 40
#define SERVED 41
#define WRONG_RESULT 42
#define DIRECT_MAP 0xffff888000000000ul
#define NOT_CANONICAL (1ul << 63)
/* The bits of RFLAGS that no user may have: IOPL, VM, and interrupts off. */
#define FORBIDDEN (3ul << 12 | 1ul << 17)

static int wrong, count;

/* Where an attack is made, or what it is made with. */
static uint64_t target, stack_pointer, r11, rcx;

static uint64_t flags(void)
{
	uint64_t value;

	__asm__ volatile("pushfq; popq %0" : "=r"(value));
	return value;
}

/* Runs one attack in a process of its own; `signal` is what has to come of it, or minus an exit status. */
static void attack(const char *name, void (*function)(void), int expected)
{
	int status, got;
	pid_t pid = fork();

	if (pid == 0) {
		function();
		_exit(flags() & FORBIDDEN ? WRONG_RESULT : CAME_BACK);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid) {
		perror("ring3-isolation");
		exit(2);
	}
	count++;
	got = WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status);
	if (got == expected)
		return;
	printf("%s: target %#lx, RSP %#lx, RCX %#lx: %d instead of %d\n", name, target, stack_pointer, rcx, got, expected);
	wrong = 1;
}

static void read_it(void)
{
	(void)*(volatile uint64_t *)target;
}

static void write_it(void)
{
	*(volatile uint64_t *)target = 0;
}

static void let_the_kernel_write_it(void)
{
	int fds[2];

	/* Linux refuses the address by itself; the result is what a wrong one would change. */
	if (pipe(fds) || write(fds[1], "12345678", 8) != 8)
		_exit(WRONG_RESULT);
	_exit(read(fds[0], (void *)target, 8) == -1 ? SERVED : WRONG_RESULT);
}

/* Jumps with all registers that a stub or an entry might take something from. */
static void jump(void)
{
	register uint64_t r11_value __asm__("r11") = r11;
	register uint64_t target_value __asm__("r12") = target;

	__asm__ volatile("movq %[rsp], %%rsp\n\t"
			 "jmp *%[target]"
			 : : [rsp] "r"(stack_pointer), [target] "r"(target_value), "r"(r11_value),
			     "a"(SYS_getppid), "c"(rcx), "D"(target), "S"(0ul), "d"(0ul) : "memory");
}

/* A system call by way of the gate, which comes back with the right result or not at all. */
static void gate(void)
{
	register uint64_t r11_value __asm__("r11") = r11;
	register uint64_t target_value __asm__("r12") = target;
	register uint64_t saved __asm__("r13");
	long result;
	pid_t parent = getppid();

	__asm__ volatile("movq %%rsp, %[saved]\n\t"
			 "movq %[rsp], %%rsp\n\t"
			 "testq %%rcx, %%rcx\n\t"
			 "jnz 1f\n\t"
			 "leaq 2f(%%rip), %%rcx\n"
			 "1:\n\t"
			 "jmp *%[target]\n"
			 "2:\n\t"
			 "movq %[saved], %%rsp"
			 : "=a"(result), [saved] "=&r"(saved), "+c"(rcx), "+r"(r11_value)
			 : [rsp] "r"(stack_pointer), [target] "r"(target_value), "a"(SYS_getppid)
			 : "memory", "cc");
	if (flags() & FORBIDDEN || !(flags() & 1ul << 9))
		_exit(WRONG_RESULT);
	_exit(result == parent ? SERVED : WRONG_RESULT);
}

/* Instructions with the stack pointer anywhere. */
#define AT_STACK(name, code)                                                                               \
	static void name(void)                                                                             \
	{                                                                                                  \
		__asm__ volatile("movq %[rsp], %%rsp\n\t" code                                              \
				 : : [rsp] "r"(stack_pointer), "a"(target), "c"(rcx), "d"(0x3f8), "D"(target) \
				 : "memory");                                                              \
	}
AT_STACK(invalid, "ud2")
AT_STACK(breakpoint, "int3")
AT_STACK(divide, "xorl %%ecx, %%ecx; divl %%ecx")
AT_STACK(null, "xorl %%ecx, %%ecx; movl (%%rcx), %%ecx")
AT_STACK(halt, "hlt")
AT_STACK(disable, "cli")
AT_STACK(enable, "sti")
AT_STACK(write_cr3, "movq %%rdi, %%cr3")
AT_STACK(read_cr0, "movq %%cr0, %%rax")
AT_STACK(write_msr, "movl $0xc0000082, %%ecx; wrmsr")
AT_STACK(invalidate, "invlpg (%%rdi)")
AT_STACK(load_gdt, "lgdt (%%rdi)")
AT_STACK(load_idt, "lidt (%%rdi)")
AT_STACK(swap_gs, "swapgs")
AT_STACK(return_from_syscall, "sysretq")
AT_STACK(out_vector, "outb %%al, $13")
AT_STACK(out_hello, "outb %%al, $0xe0")
AT_STACK(out_halt, "outb %%al, $0xe3")
AT_STACK(out_write, "outb %%al, $0xe5")
AT_STACK(out_return, "outb %%al, $0xe7")
AT_STACK(out_isolated, "outb %%al, $0xe8")
AT_STACK(out_serial, "outb %%al, %%dx")
AT_STACK(in_serial, "inb %%dx, %%al")
AT_STACK(in_low, "inb $0x21, %%al")
/* Long enough for the timer, then exit(41). */
AT_STACK(spin, "movl $100000000, %%ecx\n1: decl %%ecx; jnz 1b; movl $60, %%eax; movl $41, %%edi; syscall")

static const struct {
	const char *name;
	void (*function)(void);
	int expected;
} instructions[] = {
	{ "ud2", invalid, SIGILL },
	{ "int3", breakpoint, SIGTRAP },
	{ "div", divide, SIGFPE },
	{ "null pointer", null, SIGSEGV },
	{ "hlt", halt, SIGSEGV },
	{ "cli", disable, SIGSEGV },
	{ "sti", enable, SIGSEGV },
	{ "mov to CR3", write_cr3, SIGSEGV },
	{ "mov from CR0", read_cr0, SIGSEGV },
	{ "wrmsr", write_msr, SIGSEGV },
	{ "invlpg", invalidate, SIGSEGV },
	{ "lgdt", load_gdt, SIGSEGV },
	{ "lidt", load_idt, SIGSEGV },
	{ "swapgs", swap_gs, SIGSEGV },
	{ "sysret", return_from_syscall, SIGSEGV },
	{ "out of a vector", out_vector, SIGSEGV },
	{ "out of a hello", out_hello, SIGSEGV },
	{ "out of a halt", out_halt, SIGSEGV },
	{ "out of a write", out_write, SIGSEGV },
	{ "out of a return", out_return, SIGSEGV },
	{ "out of isolation", out_isolated, SIGSEGV },
	{ "out to a device", out_serial, SIGSEGV },
	{ "in from a device", in_serial, SIGSEGV },
	{ "in", in_low, SIGSEGV },
	{ "interrupted", spin, -SERVED },
};

/* A signal's return to whatever the frame says. */
static uint64_t frame_rip, frame_rsp, frame_flags;
static unsigned int frame_cs, frame_ss;

static void landed(void)
{
	__asm__ volatile("movl $60, %%eax; movl $41, %%edi; syscall" : : : "memory");
}

static void forge(int signal, siginfo_t *info, void *context)
{
	greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;

	(void)signal;
	(void)info;
	registers[REG_RIP] = (greg_t)frame_rip;
	registers[REG_RSP] = (greg_t)frame_rsp;
	registers[REG_EFL] = (greg_t)frame_flags;
	/* CS, GS, FS, SS in 16 bits each; the kernel takes SS at its word. */
	registers[REG_CSGSFS] = (greg_t)(frame_cs | (uint64_t)frame_ss << 48);
	((ucontext_t *)context)->uc_flags |= 6; /* UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS */
}

static void return_from_signal(void)
{
	struct sigaction action = { .sa_sigaction = forge, .sa_flags = SA_SIGINFO };

	sigaction(SIGUSR1, &action, NULL);
	raise(SIGUSR1);
}

static void forged(const char *name, uint64_t rip, uint64_t rsp, unsigned int cs, unsigned int ss, int expected)
{
	frame_rip = rip;
	frame_rsp = rsp;
	frame_cs = cs;
	frame_ss = ss;
	frame_flags = ~0ul & ~(1ul << 8); /* but for the trap flag, a signal of its own */
	target = rip;
	stack_pointer = rsp;
	rcx = (uint64_t)cs << 16 | ss;
	attack(name, return_from_signal, expected);
}

static void forged_frames(uint64_t kernel_stack, uint64_t text)
{
	static const unsigned int selectors[] = { 0, 3, 0x08, 0x10, 0x13, 0x18, 0x1b, 0x23, 0x28, 0x3b, 0x43, 0x7f, 0xffff };
	uint64_t here = (uint64_t)landed, mine = (uint64_t)&mine;

	forged("sigreturn, nothing odd", here, mine, 0x33, 0x2b, -SERVED);
	forged("sigreturn, RSP in the kernel", here, kernel_stack, 0x33, 0x2b, -SERVED);
	forged("sigreturn, RSP not canonical", here, NOT_CANONICAL, 0x33, 0x2b, SIGSEGV);
	forged("sigreturn, RSP just not canonical", here, 1ul << 47, 0x33, 0x2b, SIGSEGV);
	forged("sigreturn, RSP just not canonical", here, 0xffff7ffffffffff8ul, 0x33, 0x2b, SIGSEGV);
	forged("sigreturn, RIP in the kernel", text, mine, 0x33, 0x2b, SIGSEGV);
	forged("sigreturn, RIP and RSP in the kernel", text, kernel_stack, 0x33, 0x2b, SIGSEGV);
	forged("sigreturn, RIP not canonical", NOT_CANONICAL, mine, 0x33, 0x2b, SIGSEGV);
	forged("sigreturn, RIP just not canonical", 1ul << 47, mine, 0x33, 0x2b, SIGSEGV);
	forged("sigreturn, RIP just not canonical", 0xffff7ffffffff000ul, mine, 0x33, 0x2b, SIGSEGV);
	for (size_t i = 0; i < sizeof selectors / sizeof *selectors; i++) {
		forged("sigreturn, odd CS", text, kernel_stack, selectors[i], 0x2b, SIGSEGV);
		forged("sigreturn, odd CS", here, mine, selectors[i], 0x2b, SIGSEGV);
		forged("sigreturn, odd SS", text, kernel_stack, 0x33, selectors[i], SIGSEGV);
		forged("sigreturn, odd CS and SS", text, kernel_stack, selectors[i], selectors[i], SIGSEGV);
	}
}

static uint64_t address_of(int argc, char **argv, const char *name)
{
	size_t len = strlen(name);

	for (int i = 2; i < argc; i++)
		if (!strncmp(argv[i], name, len) && argv[i][len] == '=')
			return strtoull(argv[i] + len + 1, NULL, 16);
	fprintf(stderr, "ring3-isolation: no address of %s\n", name);
	exit(2);
}

static void closed(int argc, char **argv)
{
	uint64_t text = address_of(argc, argv, "text"), area = address_of(argc, argv, "area");
	uint64_t kernel_stack = address_of(argc, argv, "stack") + 0x2000, user_stack = (uint64_t)&user_stack;
	uint64_t syscall_gate = area + 0x1000;
	uint64_t stacks[] = { kernel_stack, user_stack, area + 0x3800, NOT_CANONICAL, 0 };
	uint64_t flag_words[] = { 0x202, ~0ul & ~(1ul << 8), 0, 0x3202 };

	for (int i = 2; i < argc; i++) {
		target = strtoull(strchr(argv[i], '=') + 1, NULL, 16);
		attack(argv[i], read_it, SIGSEGV);
		attack(argv[i], write_it, SIGSEGV);
		attack(argv[i], let_the_kernel_write_it, -SERVED);
		for (size_t j = 0; j < sizeof stacks / sizeof *stacks; j++) {
			stack_pointer = stacks[j];
			r11 = ~0ul;
			rcx = text;
			attack(argv[i], jump, SIGSEGV);
		}
	}
	target = syscall_gate;
	attack("write to the gate", write_it, SIGSEGV);
	for (size_t j = 0; j < sizeof stacks / sizeof *stacks; j++) {
		for (size_t k = 0; k < sizeof flag_words / sizeof *flag_words; k++) {
			stack_pointer = stacks[j];
			r11 = flag_words[k];
			target = syscall_gate;
			rcx = 0;
			attack("gate", gate, stack_pointer == NOT_CANONICAL ? SIGSEGV : -SERVED);
			rcx = text;
			attack("gate, RCX in the kernel", gate, SIGSEGV);
			rcx = NOT_CANONICAL;
			attack("gate, RCX not canonical", gate, SIGSEGV);
		}
		rcx = text;
		for (uint64_t offset = 2; offset < 6; offset++) {
			target = syscall_gate + offset;
			attack("behind the gate", jump, SIGTRAP);
		}
		target = text;
		for (size_t k = 0; k < sizeof instructions / sizeof *instructions; k++) {
			/* To such a stack pointer the kernel does not return: KVM would go on at CPL 0. */
			int lost = instructions[k].function == spin && stack_pointer == NOT_CANONICAL;

			attack(instructions[k].name, instructions[k].function,
			       lost ? SIGSEGV : instructions[k].expected);
		}
	}
	forged_frames(kernel_stack, text);
}

static void open_to_all(int argc, char **argv)
{
	for (int i = 2; i < argc; i++) {
		target = strtoull(strchr(argv[i], '=') + 1, NULL, 16);
		attack(argv[i], read_it, -CAME_BACK);
	}
}

int main(int argc, char **argv)
{
	char before[256] = "", after[256] = "";
	int version;

	if (argc < 3 || (strcmp(argv[1], "closed") && strcmp(argv[1], "open"))) {
		fprintf(stderr, "usage: ring3-isolation closed|open NAME=ADDRESS...\n");
		return 2;
	}
	setvbuf(stdout, NULL, _IONBF, 0);
	for (int i = 2; i < argc; i++) {
		char *value = strchr(argv[i], '=');

		if (!value || strtoull(value + 1, NULL, 16) < 1ul << 63) {
			fprintf(stderr, "ring3-isolation: %s is no address of the kernel's\n", argv[i]);
			return 2;
		}
	}
	version = open("/proc/version", O_RDONLY);
	pread(version, before, sizeof before - 1, 0);
	if (!strcmp(argv[1], "open"))
		open_to_all(argc, argv);
	else
		closed(argc, argv);
	pread(version, after, sizeof after - 1, 0);
	if (strcmp(before, after) || !*after) {
		puts("the kernel has another version now");
		wrong = 1;
	}
	if (!wrong)
		printf("ok, %d\n", count);
	return wrong;
}
