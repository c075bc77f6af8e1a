/*
 * A plugin of QEMU's that counts instructions, and says at each mark of the guest's how many there were.
 *
 * The guest's clock cannot tell: while the machine is idle it goes on without any, and it does not know whose they are.
 * A mark is `xchg bx, bx`. The file that `out=` names gets a line for each, `mark ALL HYPERVISOR`: the instructions up
 * to there, and those of the hypervisor among them. An instruction is the hypervisor's by its address: the ABI sets the
 * same range aside for it in every 64-bit PV guest (public/arch-x86/xen-x86_64.h), and neither Debian's Xen nor ours
 * runs anywhere else once a guest does. `kernel ALL HYPERVISOR` comes before all marks: the first instruction of a
 * kernel in the top 2 GiB, where Linux is.
 *
 * If `blocks=` names another file, that gets a line for each block of instructions that a program begins, the first time
 * it does, and maybe again: its address and its first bytes, in hexadecimal digits.
 *
 * What is used of QEMU's interface (docs/devel/tcg-plugins.rst, version 1) is declared here, since Debian does not
 * package its header.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define INLINE_ADD_U64 0
#define NO_REGISTERS 0
#define SHOWN 4

#define HYPERVISOR_START 0xffff800000000000ull
#define HYPERVISOR_END 0xffff880000000000ull
#define KERNEL_START 0xffffffff80000000ull
#define PROGRAMS_END 0x0000800000000000ull

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *, int, void *, uint64_t);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*)(unsigned, void *), int, void *);

EXPORT int qemu_plugin_version = 1;

static uint64_t hypervisors, others;
static bool kernel_began;
static FILE *out, *blocks;

static void say(const char *what)
{
    fprintf(out, "%s %" PRIu64 " %" PRIu64 "\n", what, hypervisors + others, hypervisors);
    fflush(out);
}

static void marked(unsigned vcpu, void *unused)
{
    (void)vcpu;
    (void)unused;
    say("mark");
}

static void list(struct qemu_plugin_tb *block)
{
    fprintf(blocks, "%" PRIx64 " ", qemu_plugin_insn_vaddr(qemu_plugin_tb_get_insn(block, 0)));
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block) && i < SHOWN; i++) {
        struct qemu_plugin_insn *one = qemu_plugin_tb_get_insn(block, i);
        const uint8_t *bytes = qemu_plugin_insn_data(one);
        for (size_t at = 0; at < qemu_plugin_insn_size(one); at++)
            fprintf(blocks, "%02x", bytes[at]);
    }
    fputc('\n', blocks);
    fflush(blocks);
}

static void translated(plugin_id id, struct qemu_plugin_tb *block)
{
    static const uint8_t mark[] = {0x66, 0x87, 0xdb};
    (void)id;
    if (blocks && qemu_plugin_insn_vaddr(qemu_plugin_tb_get_insn(block, 0)) < PROGRAMS_END)
        list(block);
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
        struct qemu_plugin_insn *one = qemu_plugin_tb_get_insn(block, i);
        uint64_t address = qemu_plugin_insn_vaddr(one);
        bool is_hypervisor = address >= HYPERVISOR_START && address < HYPERVISOR_END;
        if (address >= KERNEL_START && !kernel_began) {
            /* A block is translated right before it first runs. */
            kernel_began = true;
            say("kernel");
        }
        qemu_plugin_register_vcpu_insn_exec_inline(one, INLINE_ADD_U64, is_hypervisor ? &hypervisors : &others, 1);
        if (qemu_plugin_insn_size(one) == sizeof mark && !memcmp(qemu_plugin_insn_data(one), mark, sizeof mark))
            qemu_plugin_register_vcpu_insn_exec_cb(one, marked, NO_REGISTERS, NULL);
    }
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    (void)info;
    bool failed = false;
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "out=", 4))
            out = fopen(argv[i] + 4, "w");
        if (!strncmp(argv[i], "blocks=", 7))
            failed = !(blocks = fopen(argv[i] + 7, "w"));
    }
    if (!out || failed)
        return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    return 0;
}
