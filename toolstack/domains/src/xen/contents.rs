//! What a domain holds, by Xen 4.17's control calls.

use super::Xen;
use crate::hyper::{Contents, FRAME_TYPES};
use crate::inquiry::VersionInfo;
use ferroxen_abi::domctl::{self, CpuidLeaf, Domctl, DomctlCmd, MsrEntry, ShadowOp, ShadowOpCmd, VcpuMsr};
use ferroxen_abi::memory::{MachphysMfnList, MemoryCmd};
use ferroxen_abi::x86::VcpuGuestContext;
use ferroxen_abi::xen::MmuextOp;
use ferroxen_stream::image::VcpuPart;
use ferroxen_words::{DomId, Gfn, Mfn, PAGE_SIZE, RawDomId};
use ferroxen_xenctl::{Access, ForeignPages};
use std::io;
use zerocopy::{FromZeros, IntoBytes};

/// `MMUEXT_PIN_L1_TABLE`; the other levels follow.
const PIN_L1_TABLE: u32 = 0;
/// `MMUEXT_CLEAR_PAGE`
const CLEAR_PAGE: u32 = 16;
/// Bytes of the machine-to-physical table that one element of its list stands for.
const TABLE_PIECE: usize = 2 << 20;
/// More pieces than any host has: of 64 TiB.
const TABLE_PIECES: u64 = 1 << 16;

impl Contents for Xen {
    fn version(&self) -> io::Result<(u32, u32)> {
        let (major, minor) = self.privcmd.version()?;
        Ok((major.into(), minor.into()))
    }

    fn about_itself(&self) -> io::Result<VersionInfo> {
        Xen::version(self)
    }

    fn resume(&self, domid: DomId) -> io::Result<()> {
        self.plain(DomctlCmd::RESUMEDOMAIN, domid)
    }

    fn machine_to_phys(&self) -> io::Result<(ForeignPages, u64)> {
        let last = self.privcmd.memory_op_bare(MemoryCmd::MAXIMUM_RAM_PAGE.0)?;
        let frames = u64::try_from(last).map_err(|_| io::ErrorKind::InvalidData)? + 1;
        let pieces = (frames * 8).div_ceil(TABLE_PIECE as u64).min(TABLE_PIECES);
        let starts = self.privcmd.buffer(pieces as usize * 8)?;
        let mut request = MachphysMfnList {
            max_extents: pieces as u32,
            extent_start: starts.handle(),
            ..Default::default()
        };
        self.privcmd.memory_op(MemoryCmd::MACHPHYS_MFN_LIST.0, &mut request)?;
        let starts: Vec<u64> = starts.get_many(0, (request.nr_extents as usize).min(pieces as usize))?;
        // Beyond the last frame a piece may have no pages any more.
        let pages = ((frames * 8).div_ceil(PAGE_SIZE as u64) as usize).min(starts.len() * (TABLE_PIECE / PAGE_SIZE));
        let frames_of = |start: u64| (0..(TABLE_PIECE / PAGE_SIZE) as u64).map(move |at| Gfn::new(start + at));
        let table: Vec<Gfn> = starts.into_iter().flat_map(frames_of).take(pages).collect();
        let (pages, _) = self
            .privcmd
            .map_foreign_partly(RawDomId::XEN, &table, Access::ReadOnly)?;
        Ok((pages, frames))
    }

    fn map_to_read(&self, domid: DomId, frames: &[Gfn]) -> io::Result<ForeignPages> {
        self.privcmd.map_foreign(domid.to_abi(), frames, Access::ReadOnly)
    }

    fn frame_types(&self, domid: DomId, frames: &mut [u64]) -> io::Result<()> {
        for batch in frames.chunks_mut(FRAME_TYPES) {
            let buffer = self.privcmd.buffer_of(batch)?;
            let request = domctl::Getpageframeinfo3 {
                num: batch.len() as u64,
                array: buffer.handle(),
            };
            self.tell(DomctlCmd::GETPAGEFRAMEINFO3, domid, &request)?;
            buffer.read(0, batch.as_mut_bytes())?;
        }
        Ok(())
    }

    fn begin_log(&self, domid: DomId) -> io::Result<bool> {
        match self.shadow(domid, ShadowOpCmd::ENABLE_LOGDIRTY) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(false),
            other => other.map(|()| true),
        }
    }

    fn take_log(&self, domid: DomId, frames: u64) -> io::Result<Vec<u64>> {
        let words = usize::try_from(frames).unwrap_or(usize::MAX).div_ceil(64);
        let bits = self.privcmd.buffer(words * size_of::<u64>())?;
        let request = ShadowOp {
            op: ShadowOpCmd::CLEAN,
            dirty_bitmap: bits.handle(),
            pages: frames,
            ..Default::default()
        };
        self.tell(DomctlCmd::SHADOW_OP, domid, &request)?;
        bits.get_many(0, words)
    }

    fn end_log(&self, domid: DomId) -> io::Result<()> {
        self.shadow(domid, ShadowOpCmd::OFF)
    }

    fn vcpu_context(&self, domid: DomId, vcpu: u32) -> io::Result<Box<VcpuGuestContext>> {
        let mut context = Box::new(VcpuGuestContext::new_zeroed());
        let buffer = self.privcmd.buffer(size_of::<VcpuGuestContext>())?;
        let request = domctl::Vcpucontext {
            vcpu,
            pad: 0,
            ctxt: buffer.handle(),
        };
        self.tell(DomctlCmd::GETVCPUCONTEXT, domid, &request)?;
        buffer.read(0, context.as_mut_bytes())?;
        Ok(context)
    }

    fn vcpu_part(&self, domid: DomId, vcpu: u32, part: VcpuPart) -> io::Result<Vec<u8>> {
        match part {
            VcpuPart::Basic => Ok(self.vcpu_context(domid, vcpu)?.as_bytes().to_vec()),
            VcpuPart::Extended => {
                let request = domctl::ExtVcpucontext {
                    vcpu,
                    ..Default::default()
                };
                let given = self.ask(DomctlCmd::GET_EXT_VCPUCONTEXT, domid, &request)?;
                let len = (given.size as usize).min(size_of_val(&given));
                Ok(given.as_bytes()[..len].to_vec())
            }
            VcpuPart::Xsave => self.xsave_area(domid, vcpu),
            VcpuPart::Msrs => self.msrs(domid, vcpu),
        }
    }

    fn set_vcpu_part(&self, domid: DomId, vcpu: u32, part: VcpuPart, bytes: &[u8]) -> io::Result<()> {
        match part {
            VcpuPart::Basic => {
                let buffer = self.privcmd.buffer_of(bytes)?;
                let request = domctl::Vcpucontext {
                    vcpu,
                    pad: 0,
                    ctxt: buffer.handle(),
                };
                self.tell(DomctlCmd::SETVCPUCONTEXT, domid, &request)
            }
            VcpuPart::Extended => {
                let mut request = domctl::ExtVcpucontext::new_zeroed();
                let len = bytes.len().min(size_of_val(&request));
                request.as_mut_bytes()[..len].copy_from_slice(&bytes[..len]);
                request.vcpu = vcpu;
                self.tell(DomctlCmd::SET_EXT_VCPUCONTEXT, domid, &request)
            }
            VcpuPart::Xsave => {
                let buffer = self.privcmd.buffer_of(bytes)?;
                let request = domctl::Vcpuextstate {
                    vcpu,
                    size: bytes.len() as u64,
                    buffer: buffer.handle(),
                    ..Default::default()
                };
                self.tell(DomctlCmd::SETVCPUEXTSTATE, domid, &request)
            }
            VcpuPart::Msrs => {
                let buffer = self.privcmd.buffer_of(bytes)?;
                let request = domctl::VcpuMsrs {
                    vcpu,
                    msr_count: (bytes.len() / size_of::<VcpuMsr>()) as u32,
                    msrs: buffer.handle(),
                };
                self.tell(DomctlCmd::SET_VCPU_MSRS, domid, &request)
            }
        }
    }

    fn tsc_info(&self, domid: DomId) -> io::Result<domctl::TscInfo> {
        self.ask(DomctlCmd::GETTSCINFO, domid, &domctl::TscInfo::default())
    }

    fn set_tsc_info(&self, domid: DomId, info: &domctl::TscInfo) -> io::Result<()> {
        self.tell(DomctlCmd::SETTSCINFO, domid, info)
    }

    fn cpu_policy(&self, domid: DomId) -> io::Result<(Vec<CpuidLeaf>, Vec<MsrEntry>)> {
        let room: domctl::CpuPolicy = self.ask(DomctlCmd::GET_CPU_POLICY, domid, &domctl::CpuPolicy::default())?;
        let (leaves, registers) = self.policy_room(room.nr_leaves, room.nr_msrs)?;
        let request = domctl::CpuPolicy {
            leaves: leaves.handle(),
            msrs: registers.handle(),
            ..room
        };
        let answer: domctl::CpuPolicy = self.ask(DomctlCmd::GET_CPU_POLICY, domid, &request)?;
        Ok((
            leaves.get_many(0, answer.nr_leaves.min(room.nr_leaves) as usize)?,
            registers.get_many(0, answer.nr_msrs.min(room.nr_msrs) as usize)?,
        ))
    }

    fn set_cpu_policy(&self, domid: DomId, leaves: &[CpuidLeaf], msrs: &[MsrEntry]) -> io::Result<Option<(u32, u32)>> {
        let (leaf_buffer, msr_buffer) = (self.privcmd.buffer_of(leaves)?, self.privcmd.buffer_of(msrs)?);
        let request = domctl::CpuPolicy {
            nr_leaves: leaves.len() as u32,
            nr_msrs: msrs.len() as u32,
            leaves: leaf_buffer.handle(),
            msrs: msr_buffer.handle(),
            err_leaf: u32::MAX,
            ..Default::default()
        };
        let mut op = Domctl::with(DomctlCmd::SET_CPU_POLICY, domid.to_abi(), &request);
        let done = self.privcmd.domctl(&mut op).map(drop);
        let answer: domctl::CpuPolicy = op.payload();
        match done {
            Err(_) if answer.err_leaf != u32::MAX => Ok(Some((answer.err_leaf, answer.err_subleaf))),
            other => other.map(|()| None),
        }
    }

    fn pin(&self, domid: DomId, tables: &[(u8, Mfn)]) -> io::Result<()> {
        for batch in tables.chunks(FRAME_TYPES) {
            let mut ops: Vec<MmuextOp> = batch
                .iter()
                .map(|(level, frame)| MmuextOp {
                    cmd: PIN_L1_TABLE + u32::from(*level) - 1,
                    pad: 0,
                    arg1: frame.raw(),
                    arg2: 0,
                })
                .collect();
            self.privcmd.mmuext_op(&mut ops, domid.to_abi())?;
        }
        Ok(())
    }

    fn clear(&self, domid: DomId, frames: &[u64]) -> io::Result<()> {
        for batch in frames.chunks(FRAME_TYPES) {
            let op = |frame: &u64| MmuextOp {
                cmd: CLEAR_PAGE,
                pad: 0,
                arg1: *frame,
                arg2: 0,
            };
            let mut ops: Vec<MmuextOp> = batch.iter().map(op).collect();
            self.privcmd.mmuext_op(&mut ops, domid.to_abi())?;
        }
        Ok(())
    }
}

impl Xen {
    fn shadow(&self, domid: DomId, op: ShadowOpCmd) -> io::Result<()> {
        let request = ShadowOp {
            op,
            ..Default::default()
        };
        self.tell(DomctlCmd::SHADOW_OP, domid, &request)
    }

    fn xsave_area(&self, domid: DomId, vcpu: u32) -> io::Result<Vec<u8>> {
        // Without a buffer, how much there is.
        let mut request = domctl::Vcpuextstate {
            vcpu,
            ..Default::default()
        };
        request = self.ask(DomctlCmd::GETVCPUEXTSTATE, domid, &request)?;
        // A host without XSAVE has only the head of an area, and takes none.
        if request.xfeature_mask == 0 {
            return Ok(Vec::new());
        }
        let buffer = self.privcmd.buffer(request.size as usize)?;
        request.buffer = buffer.handle();
        self.tell(DomctlCmd::GETVCPUEXTSTATE, domid, &request)?;
        buffer.get_many(0, request.size as usize)
    }

    fn msrs(&self, domid: DomId, vcpu: u32) -> io::Result<Vec<u8>> {
        let mut request = domctl::VcpuMsrs {
            vcpu,
            ..Default::default()
        };
        request = self.ask(DomctlCmd::GET_VCPU_MSRS, domid, &request)?;
        if request.msr_count == 0 {
            return Ok(Vec::new());
        }
        let buffer = self.privcmd.buffer(request.msr_count as usize * size_of::<VcpuMsr>())?;
        request.msrs = buffer.handle();
        let given = self.ask(DomctlCmd::GET_VCPU_MSRS, domid, &request)?;
        buffer.get_many(0, given.msr_count as usize * size_of::<VcpuMsr>())
    }
}
