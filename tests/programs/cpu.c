/* Registers: a loop holds known values in every general, x87, SSE, AVX2 or AVX-512 register (with mask registers) and
 * looks at them all the time, in several threads, with rounding modes, the direction flag and TLS bases of their own. */
#include "check.h"
#include <asm/prctl.h>
#include <cpuid.h>
#include <immintrin.h>

#define THREADS 4
static atomic_int running, finish;
static atomic_long rounds[THREADS];

static int has_avx2(void) { return __builtin_cpu_supports("avx2"); }
static int has_avx512(void) { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"); }

/* Each function loads all registers from `in`, spins, stores them to `out`; compared by the caller. */
__attribute__((target("avx512f,avx512bw"))) static void hold_avx512(const unsigned char *in, unsigned char *out, long spins)
{
#define L(n) "vmovdqu64 64*" #n "(%0), %%zmm" #n "\n"
#define S(n) "vmovdqu64 %%zmm" #n ", 64*" #n "(%1)\n"
    __asm__ volatile(
        L(0) L(1) L(2) L(3) L(4) L(5) L(6) L(7) L(8) L(9) L(10) L(11) L(12) L(13) L(14) L(15) L(16) L(17) L(18) L(19)
        L(20) L(21) L(22) L(23) L(24) L(25) L(26) L(27) L(28) L(29) L(30) L(31)
        "kmovq 2048(%0), %%k1\n kmovq 2056(%0), %%k2\n kmovq 2064(%0), %%k3\n kmovq 2072(%0), %%k4\n"
        "kmovq 2080(%0), %%k5\n kmovq 2088(%0), %%k6\n kmovq 2096(%0), %%k7\n"
        "1: pause\n dec %2\n jnz 1b\n"
        S(0) S(1) S(2) S(3) S(4) S(5) S(6) S(7) S(8) S(9) S(10) S(11) S(12) S(13) S(14) S(15) S(16) S(17) S(18) S(19)
        S(20) S(21) S(22) S(23) S(24) S(25) S(26) S(27) S(28) S(29) S(30) S(31)
        "kmovq %%k1, 2048(%1)\n kmovq %%k2, 2056(%1)\n kmovq %%k3, 2064(%1)\n kmovq %%k4, 2072(%1)\n"
        "kmovq %%k5, 2080(%1)\n kmovq %%k6, 2088(%1)\n kmovq %%k7, 2096(%1)\n"
        : "+r"(in), "+r"(out), "+r"(spins)
        :
        : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
          "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22",
          "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31", "k1", "k2", "k3", "k4", "k5",
          "k6", "k7");
#undef L
#undef S
}

__attribute__((target("avx2"))) static void hold_avx2(const unsigned char *in, unsigned char *out, long spins)
{
#define L(n) "vmovdqu 32*" #n "(%0), %%ymm" #n "\n"
#define S(n) "vmovdqu %%ymm" #n ", 32*" #n "(%1)\n"
    __asm__ volatile(L(0) L(1) L(2) L(3) L(4) L(5) L(6) L(7) L(8) L(9) L(10) L(11) L(12) L(13) L(14) L(15)
                     "1: pause\n dec %2\n jnz 1b\n"
                     S(0) S(1) S(2) S(3) S(4) S(5) S(6) S(7) S(8) S(9) S(10) S(11) S(12) S(13) S(14) S(15)
                     : "+r"(in), "+r"(out), "+r"(spins)
                     :
                     : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                       "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
#undef L
#undef S
}

static void hold_sse(const unsigned char *in, unsigned char *out, long spins)
{
#define L(n) "movdqu 16*" #n "(%0), %%xmm" #n "\n"
#define S(n) "movdqu %%xmm" #n ", 16*" #n "(%1)\n"
    __asm__ volatile(L(0) L(1) L(2) L(3) L(4) L(5) L(6) L(7) L(8) L(9) L(10) L(11) L(12) L(13) L(14) L(15)
                     "1: pause\n dec %2\n jnz 1b\n"
                     S(0) S(1) S(2) S(3) S(4) S(5) S(6) S(7) S(8) S(9) S(10) S(11) S(12) S(13) S(14) S(15)
                     : "+r"(in), "+r"(out), "+r"(spins)
                     :
                     : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                       "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
#undef L
#undef S
}

/* Eight values on the x87 stack, in 80 bits, left there while spinning. */
static void hold_x87(const unsigned char *in, unsigned char *out, long spins)
{
    __asm__ volatile("fninit\n"
                     "fldt 0(%0)\n fldt 16(%0)\n fldt 32(%0)\n fldt 48(%0)\n"
                     "fldt 64(%0)\n fldt 80(%0)\n fldt 96(%0)\n fldt 112(%0)\n"
                     "1: pause\n dec %2\n jnz 1b\n"
                     "fstpt 112(%1)\n fstpt 96(%1)\n fstpt 80(%1)\n fstpt 64(%1)\n"
                     "fstpt 48(%1)\n fstpt 32(%1)\n fstpt 16(%1)\n fstpt 0(%1)\n"
                     : "+r"(in), "+r"(out), "+r"(spins)
                     :
                     : "memory", "cc", "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)");
}

/* Every general register but rsp holds a value of its own (in[0..13]) while rcx counts down and the direction flag is
 * set; out[14] gets the flags. */
void hold_general(const uint64_t *in, uint64_t *out, long spins);
__asm__(".text\n.globl hold_general\n.type hold_general, @function\nhold_general:\n"
        "push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n push %rsi\n"
        "mov %rdx, %rcx\n mov %rdi, %rax\n"
        "mov 8(%rax), %rbx\n mov 16(%rax), %rdx\n mov 24(%rax), %rsi\n mov 32(%rax), %rdi\n"
        "mov 40(%rax), %rbp\n mov 48(%rax), %r8\n mov 56(%rax), %r9\n mov 64(%rax), %r10\n"
        "mov 72(%rax), %r11\n mov 80(%rax), %r12\n mov 88(%rax), %r13\n mov 96(%rax), %r14\n"
        "mov 104(%rax), %r15\n mov 0(%rax), %rax\n"
        "std\n"
        "1: pause\n lea -1(%rcx), %rcx\n jrcxz 2f\n jmp 1b\n2:\n"
        "pushfq\n cld\n"               /* flags, out */
        "mov 8(%rsp), %rcx\n mov %rax, 0(%rcx)\n pop %rax\n mov %rax, 112(%rcx)\n"
        "mov %rbx, 8(%rcx)\n mov %rdx, 16(%rcx)\n mov %rsi, 24(%rcx)\n mov %rdi, 32(%rcx)\n"
        "mov %rbp, 40(%rcx)\n mov %r8, 48(%rcx)\n mov %r9, 56(%rcx)\n mov %r10, 64(%rcx)\n"
        "mov %r11, 72(%rcx)\n mov %r12, 80(%rcx)\n mov %r13, 88(%rcx)\n mov %r14, 96(%rcx)\n"
        "mov %r15, 104(%rcx)\n"
        "pop %rsi\n pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");

static void *work(void *arg)
{
    long me = (long)arg;
    unsigned char in[2112] __attribute__((aligned(64))), out[2112] __attribute__((aligned(64)));
    /* four rounding modes, told apart by thread; exceptions masked */
    unsigned mxcsr = 0x1f80 | (unsigned)me << 13 | (me & 1 ? 0x8000 : 0), mxcsr_back;
    unsigned short cw = 0x037f | (unsigned short)(me << 10), cw_back;
    unsigned long gs = 0x7000000 + me * 0x1000, gs_back = 0;
    MUST(syscall(SYS_arch_prctl, ARCH_SET_GS, gs) == 0);
    void *fs = NULL, *fs_back = NULL;
    MUST(syscall(SYS_arch_prctl, ARCH_GET_FS, &fs) == 0);
    running++;
    long spins = 20000;
    for (uint64_t round = me * 1000000; !finish; round++) {
        fill(in, sizeof in, round);
        memset(out, 0, sizeof out);
        _mm_setcsr(mxcsr);
        size_t size;
        if (is_mode("avx512")) {
            hold_avx512(in, out, spins);
            size = 2104;
        } else if (is_mode("avx2")) {
            hold_avx2(in, out, spins);
            size = 512;
        } else if (is_mode("sse")) {
            hold_sse(in, out, spins);
            size = 256;
        } else if (is_mode("x87")) {
            for (int i = 0; i < 8; i++) { /* proper normalised numbers, of all 64 bits of mantissa */
                in[i * 16 + 7] |= 0x80;
                in[i * 16 + 8] = 0x12 + i;
                in[i * 16 + 9] = 0x40 + (i & 1 ? 0x80 : 0);
                memset(in + i * 16 + 10, 0, 6);
            }
            hold_x87(in, out, spins);
            size = 128;
        } else {
            hold_general((uint64_t *)in, (uint64_t *)out, spins);
            CHECK(((uint64_t *)out)[14] & 0x400, "the direction flag was lost");
            size = 14 * 8;
        }
        if (WRONG(1) && round % 50 == 49)
            out[size / 2] ^= 4;
        CHECK(memcmp(in, out, size) == 0, "registers of thread %ld changed in round %llu", me,
              (unsigned long long)round);
        mxcsr_back = _mm_getcsr();
        SAME(mxcsr_back & ~0x3fu, mxcsr, "mxcsr");
        _mm_setcsr(0x1f80);
        /* the x87 control word lasts across rounds in every mode but x87's, which resets it */
        if (!is_mode("x87")) {
            if (round == (uint64_t)me * 1000000)
                __asm__ volatile("fldcw %0" ::"m"(cw));
            __asm__ volatile("fnstcw %0" : "=m"(cw_back));
            SAME(cw_back & 0xf3f, cw & 0xf3f, "x87 control word");
        }
        MUST(syscall(SYS_arch_prctl, ARCH_GET_GS, &gs_back) == 0);
        SAME(gs_back, gs, "gs base");
        MUST(syscall(SYS_arch_prctl, ARCH_GET_FS, &fs_back) == 0);
        CHECK(fs == fs_back, "fs base");
        rounds[me]++;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    if ((is_mode("avx512") && !has_avx512()) || (is_mode("avx2") && !has_avx2())) {
        say("SKIP: this processor has no %s", mode_args[0]);
        return 77;
    }
    pthread_t t[THREADS];
    for (long i = 0; i < THREADS; i++)
        MUST(pthread_create(&t[i], NULL, work, (void *)i) == 0);
    UNTIL(running == THREADS, 10, "threads");
    for (int i = 0; i < THREADS; i++)
        UNTIL(rounds[i] > 2, 10, "rounds");
    ready();
    wait_go();
    for (int i = 0; i < THREADS; i++) {
        long before = rounds[i];
        UNTIL(rounds[i] > before + (wrong_way ? 60 : 2), 20, "rounds afterwards");
    }
    finish = 1;
    for (int i = 0; i < THREADS; i++)
        pthread_join(t[i], NULL);
    ok();
}
