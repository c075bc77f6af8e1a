//! The hypervisor's own console ring, copied to a file.

use super::hypervisor::Hypervisor;
use anyhow::{Context, Result};
use ferroxen_abi::sysctl::{Readconsole, Sysctl, SysctlCmd};
use ferroxen_abi::xen::virq;
use ferroxen_words::Port;
use ferroxen_xenctl::HypercallBuffer;
use std::fs::File;
use std::io::Write;

const CHUNK: usize = 16384;

/// Follows the hypervisor's messages.
#[derive(Debug)]
pub struct HypervisorLog {
    file: File,
    buffer: HypercallBuffer,
    /// Rings when there is something new.
    pub port: Port,
    index: u32,
}

impl HypervisorLog {
    /// Starts with whatever the ring still has.
    pub fn start(hypervisor: &Hypervisor, file: File) -> Result<HypervisorLog> {
        let port = hypervisor
            .events
            .bind_virq(virq::CON_RING)
            .context("cannot bind VIRQ_CON_RING")?;
        let buffer = hypervisor.privcmd.buffer(CHUNK)?;
        let mut log = HypervisorLog {
            file,
            buffer,
            port,
            index: 0,
        };
        log.copy(hypervisor)?;
        Ok(log)
    }

    /// Goes on in another file.
    pub fn move_to(&mut self, file: File) {
        self.file = file;
    }

    /// Copies what is new.
    pub fn copy(&mut self, hypervisor: &Hypervisor) -> Result<()> {
        loop {
            let mut request = Sysctl::new(SysctlCmd::READCONSOLE);
            request.set_payload(&Readconsole {
                clear: 0,
                incremental: 1,
                pad0: 0,
                pad1: 0,
                index: self.index,
                buffer: self.buffer.handle(),
                count: CHUNK as u32,
                pad: 0,
            });
            hypervisor
                .privcmd
                .sysctl(&mut request)
                .context("cannot read the hypervisor's console")?;
            let answer: Readconsole = request.payload();
            self.index = answer.index;
            let bytes = self.buffer.get_many::<u8>(0, (answer.count as usize).min(CHUNK))?;
            if bytes.is_empty() {
                return Ok(());
            }
            self.file
                .write_all(&bytes)
                .context("cannot write the hypervisor's log")?;
        }
    }
}
