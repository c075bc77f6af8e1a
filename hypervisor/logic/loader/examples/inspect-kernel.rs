//! Prints what the loader makes of a kernel file: `cargo run -p ferroxen-loader --example inspect-kernel -- vmlinuz`
use ferroxen_loader::{image, kernel::PvImage};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("which kernel?")?;
    let file = std::fs::read(path)?;
    let packed = image::inspect(&file)?;
    println!(
        "{:?}, {} bytes, heap {}",
        packed.packing(),
        packed.unpacked_size(),
        packed.heap_needed()
    );
    let begin = std::time::Instant::now();
    let kernel = image::unpack_to_vec(&file, 1 << 30)?;
    println!("unpacked in {:?}", begin.elapsed());
    let image = PvImage::parse(&kernel)?;
    for segment in image.segments() {
        println!(
            "{:#x}: {} bytes of {}",
            segment.vaddr,
            segment.bytes.len(),
            segment.size
        );
    }
    println!(
        "entry {:#x}, kernel {:#x}..{:#x}",
        image.entry, image.kernel_start, image.kernel_end
    );
    println!(
        "init_p2m {:x?}, hypercall page {:x?}",
        image.init_p2m, image.hypercall_page
    );
    println!(
        "required {:?}, supported {:?}, as dom0: {:?}",
        image.required,
        image.supported,
        image.check_dom0()
    );
    Ok(())
}
