/* Makes a process believe that its processor has AVX2 and no AVX-512, and caches of 32 and 512 KB: the cpuid instruction
 * faults (arch_prctl(2), ARCH_SET_CPUID), and the handler of the fault answers in its place. For LD_PRELOAD. */
#define _GNU_SOURCE
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(n) (1u << (n))
#define AVX512_EBX (BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31)) /* F DQ IFMA PF ER CD BW VL */
#define AVX512_ECX (BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14))                                 /* VBMI VBMI2 VNNI BITALG VPOPCNTDQ */
#define AVX512_EDX (BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25))              /* 4VNNIW 4FMAPS VP2INTERSECT BF16 FP16 AMX */
#define NEWER_EAX (BIT(4) | BIT(5) | BIT(21) | BIT(23))                                            /* AVX-VNNI AVX512-BF16 AMX-FP16 AVX-IFMA */

static void set_cpuid(unsigned long allowed) { syscall(SYS_arch_prctl, ARCH_SET_CPUID, allowed); }

static void answer(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)registers[REG_RIP];
    unsigned a = registers[REG_RAX], c = registers[REG_RCX], leaf = a, part = c, b, d;
    if (code[0] != 0x0f || code[1] != 0xa2) { /* a fault of another kind ends the process, as it should */
        signal(SIGSEGV, SIG_DFL);
        return;
    }
    set_cpuid(1);
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    set_cpuid(0);
    if (leaf == 7 && part == 0) {
        b &= ~AVX512_EBX;
        c &= ~AVX512_ECX;
        d &= ~AVX512_EDX;
    } else if (leaf == 7 && part == 1) {
        a &= ~NEWER_EAX;
    } else if (leaf == 0xd && part == 0) {
        a &= BIT(0) | BIT(1) | BIT(2); /* the state of x87, SSE and AVX alone */
    } else if (leaf == 4 && ((a & 31) == 1 || ((a >> 5) & 7) == 2)) { /* the first for data, and the second */
        b = (7u << 22) | 63;                                         /* 8 ways of lines of 64 bytes */
        c = ((a >> 5) & 7) == 2 ? 1023 : 63;                         /* sets, less one */
    }
    registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

__attribute__((constructor(101))) static void start(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &action, NULL);
    set_cpuid(0);
}
