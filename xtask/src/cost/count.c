/*
 * A plugin of QEMU's that counts instructions, and says at each mark of the guest's how many there were.
 *
 * The guest's clock cannot tell: while the machine is idle it goes on without any. A mark is `xchg bx, bx`. The file
 * that `out=` names gets a line with the count for each.
 *
 * What is used of QEMU's interface (docs/devel/tcg-plugins.rst, version 1) is declared here, since Debian does not
 * package its header.
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define INLINE_ADD_U64 0
#define NO_REGISTERS 0

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *, int, void *, uint64_t);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*)(unsigned, void *), int, void *);

EXPORT int qemu_plugin_version = 1;

static uint64_t executed;
static FILE *out;

static void marked(unsigned vcpu, void *unused)
{
    (void)vcpu;
    (void)unused;
    fprintf(out, "%" PRIu64 "\n", executed);
    fflush(out);
}

static void translated(plugin_id id, struct qemu_plugin_tb *block)
{
    static const uint8_t mark[] = {0x66, 0x87, 0xdb};
    (void)id;
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
        struct qemu_plugin_insn *one = qemu_plugin_tb_get_insn(block, i);
        qemu_plugin_register_vcpu_insn_exec_inline(one, INLINE_ADD_U64, &executed, 1);
        if (qemu_plugin_insn_size(one) == sizeof mark && !memcmp(qemu_plugin_insn_data(one), mark, sizeof mark))
            qemu_plugin_register_vcpu_insn_exec_cb(one, marked, NO_REGISTERS, NULL);
    }
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "out=", 4))
            out = fopen(argv[i] + 4, "w");
    if (!out)
        return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    return 0;
}
