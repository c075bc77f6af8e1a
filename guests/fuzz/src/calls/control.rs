//! What only Domain 0 may ask: of the neighbour, and of the host.
//!
//! Commands and whom they are about are never spoilt: a controlled domain that is our own would end the run.

use pv::abi::domctl::{
    DOMCTL_INTERFACE_VERSION, Domctl, DomctlCmd, ExtVcpucontext, Getpageframeinfo3, Getvcpuinfo, HypercallInit,
    IomemPermission, IoportPermission, IrqPermission, MaxMem, SchedulerOp, Sendtrigger, Settimeoffset, ShadowOp,
    ShadowOpCmd, TscInfo, Vcpuaffinity, Vcpucontext, Vcpuextstate, XenctlBitmap,
};
use pv::abi::sysctl::{Getcpuinfo, Getdomaininfolist, Physinfo, SYSCTL_INTERFACE_VERSION, Sysctl, SysctlCmd};
use pv::hypercall::number;
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::{Call, frame};
use crate::dice::Dice;
use crate::neighbour;
use crate::scene::Scene;
use crate::step::{Room, request};

/// One of them.
pub fn control(dice: &mut Dice, scene: &Scene, room: &mut Room) -> Call {
    if dice.once_in(6) {
        return host(dice, room);
    }
    let bitmap = |room: &mut Room, bits: u64| XenctlBitmap {
        bitmap: room.put(&bits),
        nr_bits: 64,
        pad: 0,
    };
    // Two vcpus are never more than it has.
    let vcpu = u32::from(dice.once_in(8));
    let cmd = dice.one_of(&COMMANDS);
    match cmd {
        DomctlCmd::SETVCPUAFFINITY | DomctlCmd::GETVCPUAFFINITY => {
            let flags = dice.below(5) as u32;
            let (hard, soft) = (bitmap(room, dice.below(5)), bitmap(room, dice.below(5)));
            let payload = Vcpuaffinity {
                vcpu,
                flags,
                cpumap_hard: hard,
                cpumap_soft: soft,
            };
            ask(room, cmd, &payload)
        }
        DomctlCmd::MAX_MEM => {
            let max_memkb = dice.below(2 * neighbour::PAGES as u64) * 4;
            ask(room, cmd, &MaxMem { max_memkb })
        }
        DomctlCmd::MAX_VCPUS => ask(room, cmd, &(dice.below(3) as u32)),
        DomctlCmd::SETVCPUCONTEXT => {
            let ctxt = dice.one_of(&[0, neighbour::context(), neighbour::context(), neighbour::context()]);
            ask(room, cmd, &Vcpucontext { vcpu, pad: 0, ctxt })
        }
        DomctlCmd::GETVCPUCONTEXT => {
            let ctxt = scene.scratch();
            ask(room, cmd, &Vcpucontext { vcpu, pad: 0, ctxt })
        }
        DomctlCmd::GETVCPUINFO => ask(room, cmd, &request(|info: &mut Getvcpuinfo| info.vcpu = vcpu)),
        DomctlCmd::SCHEDULER_OP => {
            let payload: SchedulerOp = request(|op: &mut SchedulerOp| {
                (op.sched_id.0, op.cmd.0) = (dice.one_of(&[5, 6, 6]), dice.below(4) as u32);
                // Weight and cap; a cap keeps it from running now and then.
                op.u[0] = dice.one_of(&[0, 1, 256, 65_535]) | dice.one_of(&[0, 0, 5, 100, 0xffff]) << 16;
            });
            ask(room, cmd, &payload)
        }
        DomctlCmd::IRQ_PERMISSION => {
            let payload: IrqPermission = request(|irq: &mut IrqPermission| {
                (irq.pirq, irq.allow_access) = (dice.below(40) as u32, dice.below(2) as u8);
            });
            ask(room, cmd, &payload)
        }
        DomctlCmd::IOMEM_PERMISSION => {
            let payload: IomemPermission = request(|memory: &mut IomemPermission| {
                memory.first_mfn = dice.one_of(&[0xa0, 0xf0, 0xfec00, 0xfed00, 0, 1 << 40]);
                (memory.nr_mfns, memory.allow_access) = (dice.below(4), dice.below(2) as u8);
            });
            ask(room, cmd, &payload)
        }
        DomctlCmd::IOPORT_PERMISSION => {
            let payload: IoportPermission = request(|ports: &mut IoportPermission| {
                (ports.first_port, ports.nr_ports) = (dice.below(0x1_0001) as u32, dice.below(64) as u32);
                ports.allow_access = dice.below(2) as u8;
            });
            ask(room, cmd, &payload)
        }
        DomctlCmd::HYPERCALL_INIT => {
            let gmfn = frame(dice, scene);
            ask(room, cmd, &HypercallInit { gmfn })
        }
        DomctlCmd::SETTIMEOFFSET => {
            let time_offset_seconds = dice.below(1 << 40).cast_signed();
            ask(room, cmd, &Settimeoffset { time_offset_seconds })
        }
        DomctlCmd::SETTSCINFO => ask(
            room,
            cmd,
            &request(|tsc: &mut TscInfo| tsc.tsc_mode = dice.below(5) as u32),
        ),
        DomctlCmd::GETPAGEFRAMEINFO3 => {
            let frames: [u64; 8] = core::array::from_fn(|_| frame(dice, scene));
            let array = room.put(&frames);
            let mut request = about_it(cmd);
            request.set_payload(&Getpageframeinfo3 {
                num: dice.below(9),
                array,
            });
            Call::new(number::DOMCTL, [room.put_as_it_is(&request)])
        }
        DomctlCmd::SHADOW_OP => {
            let payload: ShadowOp = request(|log: &mut ShadowOp| {
                log.op = dice.one_of(&LOGGING);
                (log.mode, log.mb) = (dice.one_of(&[0, 0, 0, 1, 4]), dice.below(3) as u32);
                (log.dirty_bitmap, log.pages) = (scene.scratch(), dice.below(4 * neighbour::PAGES as u64));
            });
            let mut request = about_it(cmd);
            request.set_payload(&payload);
            Call::new(number::DOMCTL, [room.put_as_it_is(&request)])
        }
        DomctlCmd::SENDTRIGGER => {
            let payload: Sendtrigger = request(|send: &mut Sendtrigger| {
                (send.trigger.0, send.vcpu) = (dice.below(4) as u32, vcpu);
            });
            ask(room, cmd, &payload)
        }
        DomctlCmd::SETVCPUEXTSTATE | DomctlCmd::GETVCPUEXTSTATE => {
            let payload: Vcpuextstate = request(|state: &mut Vcpuextstate| {
                (state.vcpu, state.size) = (vcpu, dice.one_of(&[0, 16, 592, 4096]));
                state.buffer = scene.scratch();
            });
            ask(room, cmd, &payload)
        }
        DomctlCmd::SET_EXT_VCPUCONTEXT | DomctlCmd::GET_EXT_VCPUCONTEXT => {
            let payload: ExtVcpucontext = request(|context: &mut ExtVcpucontext| {
                (context.vcpu, context.size) = (vcpu, dice.one_of(&[64, 64, 0, 99]));
                context.sysenter_callback_eip = dice.below(1 << 20);
            });
            ask(room, cmd, &payload)
        }
        // Their arguments, if any, are zero.
        _ => ask(room, cmd, &0_u64),
    }
}

/// What may be asked of it. Destroying it is a step of its own.
const COMMANDS: [DomctlCmd; 31] = [
    DomctlCmd::SHADOW_OP,
    DomctlCmd::SHADOW_OP,
    DomctlCmd::PAUSEDOMAIN,
    DomctlCmd::UNPAUSEDOMAIN,
    DomctlCmd::UNPAUSEDOMAIN,
    DomctlCmd::UNPAUSEDOMAIN,
    DomctlCmd::RESUMEDOMAIN,
    DomctlCmd::GETDOMAININFO,
    DomctlCmd::SETVCPUAFFINITY,
    DomctlCmd::GETVCPUAFFINITY,
    DomctlCmd::MAX_MEM,
    DomctlCmd::MAX_VCPUS,
    DomctlCmd::SETVCPUCONTEXT,
    DomctlCmd::SETVCPUCONTEXT,
    DomctlCmd::GETVCPUCONTEXT,
    DomctlCmd::GETVCPUINFO,
    DomctlCmd::SCHEDULER_OP,
    DomctlCmd::SETDOMAINHANDLE,
    DomctlCmd::IRQ_PERMISSION,
    DomctlCmd::IOMEM_PERMISSION,
    DomctlCmd::IOPORT_PERMISSION,
    DomctlCmd::HYPERCALL_INIT,
    DomctlCmd::SETTIMEOFFSET,
    DomctlCmd::GETTSCINFO,
    DomctlCmd::SETTSCINFO,
    DomctlCmd::GETPAGEFRAMEINFO3,
    DomctlCmd::SENDTRIGGER,
    DomctlCmd::SETVCPUEXTSTATE,
    DomctlCmd::GETVCPUEXTSTATE,
    DomctlCmd::SET_EXT_VCPUCONTEXT,
    DomctlCmd::GET_EXT_VCPUCONTEXT,
];

/// What may be asked of the log of what it writes; it is mostly kept.
const LOGGING: [ShadowOpCmd; 9] = [
    ShadowOpCmd::ENABLE_LOGDIRTY,
    ShadowOpCmd::ENABLE_LOGDIRTY,
    ShadowOpCmd::ENABLE,
    ShadowOpCmd::CLEAN,
    ShadowOpCmd::CLEAN,
    ShadowOpCmd::PEEK,
    ShadowOpCmd::OFF,
    ShadowOpCmd::GET_ALLOCATION,
    ShadowOpCmd::SET_ALLOCATION,
];

fn ask<T: IntoBytes + Immutable>(room: &mut Room, cmd: DomctlCmd, payload: &T) -> Call {
    let mut request = about_it(cmd);
    request.set_payload(payload);
    // What has a buffer is left as it is, so that no more comes back than there is room for.
    let solid = match cmd {
        DomctlCmd::SETVCPUAFFINITY | DomctlCmd::GETVCPUAFFINITY | DomctlCmd::GETVCPUEXTSTATE => usize::MAX,
        _ => 2,
    };
    Call::new(number::DOMCTL, [room.put_after(&request, solid)])
}

fn about_it(cmd: DomctlCmd) -> Domctl {
    let mut request = Domctl::new_zeroed();
    (request.cmd, request.interface_version) = (cmd, DOMCTL_INTERFACE_VERSION);
    request.domain.0 = neighbour::domid();
    request
}

/// Questions about the host.
fn host(dice: &mut Dice, room: &mut Room) -> Call {
    let buffer = room.put(&[0_u64; 32]);
    let mut request = Sysctl::new_zeroed();
    request.interface_version = SYSCTL_INTERFACE_VERSION;
    request.cmd = dice.one_of(&[
        SysctlCmd::PHYSINFO,
        SysctlCmd::GETDOMAININFOLIST,
        SysctlCmd::GETCPUINFO,
        SysctlCmd::AVAILHEAP,
        SysctlCmd::CPUTOPOINFO,
        SysctlCmd::NUMAINFO,
        SysctlCmd::SCHED_ID,
        SysctlCmd::GET_CPU_FEATURESET,
        SysctlCmd::CPUPOOL_OP,
        SysctlCmd::PERFC_OP,
    ]);
    match request.cmd {
        SysctlCmd::GETDOMAININFOLIST => request.set_payload(&Getdomaininfolist {
            max_domains: dice.below(3) as u32,
            buffer,
            ..FromZeros::new_zeroed()
        }),
        SysctlCmd::GETCPUINFO => request.set_payload(&Getcpuinfo {
            max_cpus: dice.below(4) as u32,
            info: buffer,
            ..FromZeros::new_zeroed()
        }),
        _ => request.set_payload(&Physinfo::new_zeroed()),
    }
    // A larger number of anything than there is room for would come back over our stack.
    Call::new(number::SYSCTL, [room.put_as_it_is(&request)])
}
