//! Images of saved domains, made up.

use ferroxen_abi::x86::VcpuGuestContext;
use ferroxen_stream::image::{DomainKind, FrameType, Header, PageData, Record, VcpuPart};
use ferroxen_words::PAGE_SIZE;
use zerocopy::{FromZeros, IntoBytes};

const FRAMES: u32 = 16;
const PINNED_L4: u8 = 0xc;

/// Its records; frame 0 is everything but the page table, which is frame 1.
fn records() -> Vec<Record> {
    let mut context = VcpuGuestContext::new_zeroed();
    context.ctrlreg[3] = 1 << 12;
    context.gdt_ents = 512;
    let plain = FrameType::PLAIN;
    let table = FrameType::from_bits(PINNED_L4).expect("a type");
    let mut bytes = vec![0; 2 * PAGE_SIZE];
    // The table maps frame 5, which comes later.
    bytes[PAGE_SIZE..PAGE_SIZE + 8].copy_from_slice(&(5 << 12 | 1u64).to_le_bytes());
    vec![
        Record::PvInfo { width: 8, levels: 4 },
        Record::CpuidPolicy(vec![0; 24]),
        Record::StaticDataEnd,
        Record::P2mFrames {
            first: 0,
            last: FRAMES - 1,
            frames: vec![0],
        },
        Record::PageData(PageData {
            frames: vec![(0, plain), (1, table), (2, FrameType::NONE)],
            bytes,
        }),
        Record::PageData(PageData {
            frames: vec![(5, plain)],
            bytes: vec![5; PAGE_SIZE],
        }),
        Record::SharedInfo(Box::new([0; PAGE_SIZE])),
        Record::Vcpu {
            part: VcpuPart::Basic,
            vcpu: 0,
            bytes: context.as_bytes().to_vec(),
        },
        Record::Vcpu {
            part: VcpuPart::Msrs,
            vcpu: 0,
            bytes: vec![0; 16],
        },
        Record::End,
    ]
}

fn image(records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let header = Header {
        kind: DomainKind::Pv,
        xen: (4, 17),
    };
    header.write(&mut bytes).expect("a Vec takes all");
    for record in records {
        record.write(&mut bytes).expect("a Vec takes all");
    }
    bytes
}

/// One that can be restored.
pub fn of_a_small_domain() -> Vec<u8> {
    image(&records())
}

/// The same, of a domain that gave a frame away while it was sent.
pub fn of_one_that_shrank() -> Vec<u8> {
    let mut records = records();
    let sent = |kind, bytes| {
        Record::PageData(PageData {
            frames: vec![(6, kind)],
            bytes,
        })
    };
    records.insert(5, sent(FrameType::PLAIN, vec![6; PAGE_SIZE]));
    records.insert(7, sent(FrameType::NONE, Vec::new()));
    image(&records)
}

/// Some that cannot, each with what is to be said of it.
pub fn without_sense() -> Vec<(Vec<u8>, &'static str)> {
    let changed = |at: usize, record: Record| {
        let mut records = records();
        records[at] = record;
        image(&records)
    };
    let list = |first, last, frames| Record::P2mFrames { first, last, frames };
    let table = |entry: u64| {
        let mut bytes = vec![0; PAGE_SIZE];
        bytes[..8].copy_from_slice(&entry.to_le_bytes());
        let kind = FrameType::from_bits(PINNED_L4).expect("a type");
        Record::PageData(PageData {
            frames: vec![(1, kind)],
            bytes,
        })
    };
    let context = |change: fn(&mut VcpuGuestContext)| {
        let mut context = VcpuGuestContext::new_zeroed();
        context.ctrlreg[3] = 1 << 12;
        change(&mut context);
        Record::Vcpu {
            part: VcpuPart::Basic,
            vcpu: 0,
            bytes: context.as_bytes().to_vec(),
        }
    };
    let mut cut = of_a_small_domain();
    cut.truncate(cut.len() - 20);
    vec![
        (cut, "ends in the middle"),
        (changed(0, Record::PvInfo { width: 4, levels: 3 }), "32-bit"),
        (changed(3, list(0, u32::MAX, vec![0; 4])), "may have"),
        (changed(3, list(0, FRAMES - 1, vec![0; 2])), "has not the length"),
        (changed(3, list(u32::MAX, 2, vec![0])), "comes in pieces"),
        (changed(3, list(0, FRAMES - 1, vec![3])), "the P2M list is frame 0x3"),
        (
            changed(3, list(0, FRAMES - 1, vec![u64::MAX])),
            "beyond the domain's last",
        ),
        (changed(4, table(99 << 12 | 1)), "frame 0x63 is beyond"),
        (changed(4, table(!0)), "beyond the domain's last"),
        (changed(3, Record::StaticDataEnd), "memory comes before"),
        (changed(6, Record::Verify), "checkpointed or verified"),
        (changed(6, Record::StaticDataEnd), "no shared page"),
        (changed(7, Record::StaticDataEnd), "no context"),
        (
            changed(7, context(|context| context.ctrlreg[3] = 4 << 12)),
            "page-table root is frame 0x4",
        ),
        (
            changed(7, context(|context| context.gdt_ents = u64::MAX)),
            "descriptors",
        ),
        (
            changed(7, context(|context| context.user_regs.rdx = 7)),
            "start_info is frame 0x7",
        ),
    ]
}
