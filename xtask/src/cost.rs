//! `cargo xtask bench`: what each operation costs on Debian's Xen and on ours, in instructions.
//!
//! QEMU counts them: under `-icount shift=0,sleep=off` a tick of the guest's time-stamp counter is one instruction,
//! so a figure is the same whatever else this machine does. Each hypervisor runs the same kernel twice, and both runs
//! must print the same.

mod goals;
mod machine;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, ensure};

use crate::bench::{self, STOCK_XEN};
use crate::cost::goals::GOALS;
use crate::cost::machine::{Figures, Machine};
use crate::cost::table::{Row, Table};
use crate::hypervisor;
use crate::packages::{self, Need};
use crate::places;
use crate::programs::{clean_command, run};

/// Runs all, prints the table, and fails when a row costs more on ours than on Debian's.
pub fn bench(yes: bool) -> Result<()> {
    packages::require(&[Need::BareMetal, Need::Machine, Need::StockXen], yes)?;
    let kernel = hypervisor::build_guest("bench")?;
    let built = hypervisor::build()?;
    let counter = counter()?;
    let stock = bench::stock_xen()?;
    let machines = [
        Machine::new("stock", &stock, ""),
        Machine::new("stock-spec-ctrl=no", &stock, "spec-ctrl=no"),
        Machine::new("ours", &built.elf, ""),
    ];
    let mut heard = Vec::new();
    for machine in &machines {
        heard.push(twice(machine, &kernel, &counter)?);
    }
    let [stock_figures, unmitigated, ours] =
        <[Figures; 3]>::try_from(heard).map_err(|_| anyhow::anyhow!("three machines ran"))?;
    for (machine, figures) in machines.iter().zip([&stock_figures, &unmitigated, &ours]) {
        for line in &figures.mitigations {
            println!("{}: {line}", machine.name);
        }
    }
    let mut table = Table::new();
    let names = ours.of.iter().map(|(name, _)| name.as_str());
    for name in names.clone() {
        table.add(Row {
            name: name.to_owned(),
            stock: stock_figures.get(name)?,
            unmitigated: unmitigated.get(name)?,
            ours: ours.get(name)?,
            goal: GOALS.iter().find(|(of, _)| *of == name).map(|(_, goal)| *goal),
        });
    }
    for (goal, _) in GOALS {
        ensure!(ours.get(goal).is_ok(), "nobody measures {goal}");
    }
    let size = |path: &Path| -> Result<u64> {
        Ok(fs::metadata(path)
            .with_context(|| format!("reading {}", path.display()))?
            .len())
    };
    for (name, theirs, ours) in [
        ("image, bytes", size(&stock)?, size(&built.elf)?),
        ("image, packed, bytes", size(Path::new(STOCK_XEN))?, built.packed),
    ] {
        table.add(Row {
            name: name.to_owned(),
            stock: theirs,
            unmitigated: theirs,
            ours,
            goal: None,
        });
    }
    println!("{table}");
    let above = table.above();
    ensure!(
        above.is_empty(),
        "costs more than on Debian's Xen: {}",
        above.join(", ")
    );
    Ok(())
}

/// Builds the plugin that counts instructions. Whoever can link host programs has a C compiler.
fn counter() -> Result<PathBuf> {
    let source = places::root().join("xtask/src/cost/count.c");
    let plugin = places::made().join("count.so");
    run(clean_command("cc")
        .args(["-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-o"])
        .arg(&plugin)
        .arg(source))?;
    Ok(plugin)
}

/// Runs `kernel` twice at the same time, and insists on the same figures.
fn twice(machine: &Machine, kernel: &Path, counter: &Path) -> Result<Figures> {
    let (first, second) = thread::scope(|scope| {
        let other = scope.spawn(|| machine.run(kernel, counter, 1));
        (machine.run(kernel, counter, 0), other.join())
    });
    let (first, second) = (first?, second.map_err(|_| anyhow::anyhow!("a run panicked"))??);
    for ((name, one), (_, two)) in first.of.iter().zip(&second.of) {
        ensure!(one == two, "{}: {name} took {one}, and then {two}", machine.name);
    }
    ensure!(first == second, "{}: two runs do not print the same", machine.name);
    Ok(first)
}
