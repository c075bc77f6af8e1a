//! Sizes and offsets of our control structures against what a C compiler makes of upstream's headers.
//!
//! `layout.txt` holds the compiler's answers, so the comparison needs no header. To record it anew on a
//! machine with Xen's public headers and a C compiler:
//! `cargo test -p ferroxen-abi --test layout -- --ignored`.

use core::mem::{offset_of, size_of};
use std::fmt::Write as _;

struct Shape {
    c_type: &'static str,
    size: usize,
    fields: Vec<(&'static str, usize)>,
}

/// One list for both sides: ours as a path with its fields, upstream's name where it differs.
macro_rules! shapes {
    ($($c_type:literal = $ours:path { $($field:ident $(as $c_field:literal)?),* $(,)? })*) => {
        vec![$(Shape {
            c_type: $c_type,
            size: size_of::<$ours>(),
            fields: vec![$((field_name!($field $($c_field)?), offset_of!($ours, $field))),*],
        }),*]
    };
}

macro_rules! field_name {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $c_field:literal) => {
        $c_field
    };
}

fn shapes() -> Vec<Shape> {
    use ferroxen_abi::{domctl, mca, memory, physdev, platform, sysctl, version};
    shapes! {
        "struct xen_mc_physcpuinfo" = mca::Physcpuinfo { ncpus, info }
        "struct mcinfo_logical_cpu" = mca::LogicalCpu {
            cpunr as "mc_cpunr", coreid as "mc_coreid", apicid as "mc_apicid", nthreads as "mc_nthreads",
            cpuid_level as "mc_cpuid_level", step as "mc_step", vendorid as "mc_vendorid", brandid as "mc_brandid",
            cpu_caps as "mc_cpu_caps", cache_size as "mc_cache_size", nmsrvals as "mc_nmsrvals",
            msrvalues as "mc_msrvalues",
        }
        "struct physdev_eoi" = physdev::Eoi { irq }
        "struct physdev_pirq_eoi_gmfn" = physdev::PirqEoiGmfn { gmfn }
        "struct physdev_irq_status_query" = physdev::IrqStatusQuery { irq, flags }
        "struct physdev_set_iopl" = physdev::SetIopl { iopl }
        "struct physdev_set_iobitmap" = physdev::SetIobitmap { bitmap, nr_ports }
        "struct physdev_apic" = physdev::Apic { apic_physbase, reg, value }
        "struct physdev_irq" = physdev::Irq { irq, vector }
        "struct physdev_map_pirq" = physdev::MapPirq {
            domid, kind as "type", index, pirq, bus, devfn, entry_nr, table_base,
        }
        "struct physdev_unmap_pirq" = physdev::UnmapPirq { domid, pirq }
        "struct physdev_manage_pci" = physdev::ManagePci { bus, devfn }
        "struct physdev_manage_pci_ext" = physdev::ManagePciExt { bus, devfn, is_extfn, is_virtfn, physfn }
        "struct physdev_op" = physdev::PhysdevOp { cmd, u }
        "struct physdev_setup_gsi" = physdev::SetupGsi { gsi, triggering, polarity }
        "struct physdev_get_free_pirq" = physdev::GetFreePirq { kind as "type", pirq }
        "struct physdev_pci_mmcfg_reserved" = physdev::PciMmcfgReserved {
            address, segment, start_bus, end_bus, flags,
        }
        "struct physdev_pci_device_add" = physdev::PciDeviceAdd { seg, bus, devfn, flags, physfn }
        "struct physdev_pci_device" = physdev::PciDevice { seg, bus, devfn }
        "struct physdev_dbgp_op" = physdev::DbgpOp { op, bus, pci as "u.pci" }
        "struct xen_domctl" = domctl::Domctl { cmd, interface_version, domain, u }
        "struct xenctl_bitmap" = domctl::XenctlBitmap { bitmap, nr_bits }
        "struct xen_arch_domainconfig" = domctl::ArchDomainconfig { emulation_flags, misc_flags }
        "xen_cpuid_leaf_t" = domctl::CpuidLeaf { leaf, subleaf, a, b, c, d }
        "xen_msr_entry_t" = domctl::MsrEntry { idx, flags, val }
        "struct xen_domctl_createdomain" = domctl::Createdomain {
            ssidref, handle, flags, iommu_opts, max_vcpus, max_evtchn_port, max_grant_frames,
            max_maptrack_frames, grant_opts, vmtrace_size, cpupool_id, arch,
        }
        "struct xen_domctl_getdomaininfo" = domctl::Getdomaininfo {
            domain, flags, tot_pages, max_pages, outstanding_pages, shr_pages, paged_pages,
            shared_info_frame, cpu_time, nr_online_vcpus, max_vcpu_id, ssidref, handle, cpupool,
            gpaddr_bits, arch_config,
        }
        "struct xen_domctl_getpageframeinfo3" = domctl::Getpageframeinfo3 { num, array }
        "struct xen_domctl_shadow_op" = domctl::ShadowOp { op, mode, mb, dirty_bitmap, pages, stats }
        "struct xen_domctl_max_mem" = domctl::MaxMem { max_memkb }
        "struct xen_domctl_vcpucontext" = domctl::Vcpucontext { vcpu, ctxt }
        "struct xen_domctl_getvcpuinfo" = domctl::Getvcpuinfo { vcpu, online, blocked, running, cpu_time, cpu }
        "struct xen_domctl_nodeaffinity" = domctl::Nodeaffinity { nodemap }
        "struct xen_domctl_vcpuaffinity" = domctl::Vcpuaffinity { vcpu, flags, cpumap_hard, cpumap_soft }
        "struct xen_domctl_max_vcpus" = domctl::MaxVcpus { max }
        "struct xen_domctl_sched_credit2" = domctl::SchedCredit { weight, cap }
        "struct xen_domctl_sched_rtds" = domctl::SchedRtds { period, budget, flags }
        "xen_domctl_schedparam_vcpu_t" = domctl::SchedparamVcpu { u, vcpuid }
        "struct xen_domctl_scheduler_op" = domctl::SchedulerOp { sched_id, cmd, u }
        "struct xen_domctl_setdomainhandle" = domctl::Setdomainhandle { handle }
        "struct xen_domctl_setdebugging" = domctl::Setdebugging { enable }
        "struct xen_domctl_irq_permission" = domctl::IrqPermission { pirq, allow_access }
        "struct xen_domctl_iomem_permission" = domctl::IomemPermission { first_mfn, nr_mfns, allow_access }
        "struct xen_domctl_ioport_permission" = domctl::IoportPermission { first_port, nr_ports, allow_access }
        "struct xen_domctl_hypercall_init" = domctl::HypercallInit { gmfn }
        "struct xen_domctl_settimeoffset" = domctl::Settimeoffset { time_offset_seconds }
        "struct xen_domctl_hvmcontext" = domctl::Hvmcontext { size, buffer }
        "struct xen_domctl_hvmcontext_partial" = domctl::HvmcontextPartial { type_ as "type", instance, bufsz, buffer }
        "struct xen_domctl_address_size" = domctl::AddressSize { size }
        "struct xen_domctl_sendtrigger" = domctl::Sendtrigger { trigger, vcpu }
        "struct xen_domctl_assign_device" = domctl::AssignDevice { dev, flags, machine_sbdf as "u.pci.machine_sbdf" }
        "struct xen_domctl_get_device_group" = domctl::GetDeviceGroup { machine_sbdf, max_sdevs, num_sdevs, sdev_array }
        "struct xen_domctl_memory_mapping" = domctl::MemoryMapping { first_gfn, first_mfn, nr_mfns, add_mapping }
        "struct xen_domctl_ioport_mapping" = domctl::IoportMapping { first_gport, first_mport, nr_ports, add_mapping }
        "struct xen_domctl_ext_vcpucontext" = domctl::ExtVcpucontext {
            vcpu, size, syscall32_callback_eip, sysenter_callback_eip, syscall32_callback_cs,
            sysenter_callback_cs, syscall32_disables_events, sysenter_disables_events, vmce,
        }
        "struct hvm_vmce_vcpu" = domctl::VmceVcpu { caps, mci_ctl2_bank0, mci_ctl2_bank1, mcg_ext_ctl }
        "struct xen_domctl_set_target" = domctl::SetTarget { target }
        "struct xen_domctl_cpu_policy" = domctl::CpuPolicy { nr_leaves, nr_msrs, leaves, msrs, err_leaf, err_subleaf, err_msr }
        "struct xen_domctl_subscribe" = domctl::Subscribe { port }
        "struct xen_domctl_debug_op" = domctl::DebugOp { op, vcpu }
        "struct xen_domctl_tsc_info" = domctl::TscInfo { tsc_mode, gtsc_khz, incarnation, elapsed_nsec }
        "struct xen_domctl_gdbsx_memio" = domctl::GdbsxMemio { pgd3val, gva, uva, len, gwr, remain }
        "struct xen_domctl_gdbsx_pauseunp_vcpu" = domctl::GdbsxPauseunpVcpu { vcpu }
        "struct xen_domctl_gdbsx_domstatus" = domctl::GdbsxDomstatus { paused, vcpu_id, vcpu_ev }
        "struct xen_domctl_vm_event_op" = domctl::VmEventOp { op, mode, port as "u.enable.port" }
        "struct xen_domctl_set_virq_handler" = domctl::SetVirqHandler { virq }
        "struct xen_domctl_vcpuextstate" = domctl::Vcpuextstate { vcpu, xfeature_mask, size, buffer }
        "struct xen_domctl_set_access_required" = domctl::SetAccessRequired { access_required }
        "struct xen_domctl_set_broken_page_p2m" = domctl::SetBrokenPageP2m { pfn }
        "struct xen_domctl_cacheflush" = domctl::Cacheflush { start_pfn, nr_pfns }
        "struct xen_domctl_paging_mempool" = domctl::PagingMempool { size }
        "struct xen_domctl_vcpu_msr" = domctl::VcpuMsr { index, reserved, value }
        "struct xen_domctl_vcpu_msrs" = domctl::VcpuMsrs { vcpu, msr_count, msrs }
        "struct xen_domctl_vnuma" = domctl::Vnuma {
            nr_vnodes, nr_vmemranges, nr_vcpus, vdistance, vcpu_to_vnode, vnode_to_pnode, vmemrange,
        }

        "struct xen_sysctl" = sysctl::Sysctl { cmd, interface_version, u }
        "struct xen_sysctl_readconsole" = sysctl::Readconsole { clear, incremental, index, buffer, count }
        "struct xen_sysctl_tbuf_op" = sysctl::TbufOp { cmd, cpu_mask, evt_mask, buffer_mfn, size }
        "struct xen_sysctl_physinfo" = sysctl::Physinfo {
            threads_per_core, cores_per_socket, nr_cpus, max_cpu_id, nr_nodes, max_node_id, cpu_khz,
            capabilities, arch_capabilities, total_pages, free_pages, scrub_pages, outstanding_pages,
            max_mfn, hw_cap,
        }
        "struct xen_sysctl_sched_id" = sysctl::SchedId { sched_id }
        "struct xen_sysctl_perfc_op" = sysctl::PerfcOp { cmd, nr_counters, nr_vals, desc, val }
        "struct xen_sysctl_getdomaininfolist" = sysctl::Getdomaininfolist { first_domain, max_domains, buffer, num_domains }
        "struct xen_sysctl_debug_keys" = sysctl::DebugKeys { keys, nr_keys }
        "xen_sysctl_cpuinfo_t" = sysctl::Cpuinfo { idletime }
        "struct xen_sysctl_getcpuinfo" = sysctl::Getcpuinfo { max_cpus, info, nr_cpus }
        "struct xen_sysctl_availheap" = sysctl::Availheap { min_bitwidth, max_bitwidth, node, avail_bytes }
        "struct xen_sysctl_cpu_hotplug" = sysctl::CpuHotplug { cpu, op }
        "struct xen_sysctl_cputopo" = sysctl::Cputopo { core, socket, node }
        "struct xen_sysctl_cputopoinfo" = sysctl::Cputopoinfo { num_cpus, cputopo }
        "struct xen_sysctl_meminfo" = sysctl::Meminfo { memsize, memfree }
        "struct xen_sysctl_numainfo" = sysctl::Numainfo { num_nodes, meminfo, distance }
        "struct xen_sysctl_cpupool_op" = sysctl::CpupoolOp { op, cpupool_id, sched_id, domid, cpu, n_dom, cpumap }
        "struct xen_sysctl_credit_schedule" = sysctl::CreditSchedule { tslice_ms, ratelimit_us, vcpu_migr_delay_us }
        "struct xen_sysctl_credit2_schedule" = sysctl::Credit2Schedule { ratelimit_us }
        "struct xen_sysctl_scheduler_op" = sysctl::SchedulerOp { cpupool_id, sched_id, cmd, u }
        "struct xen_sysctl_psr_cmt_op" = sysctl::PsrCmtOp { cmd, flags, data as "u.data" }
        "struct xen_sysctl_psr_alloc" = sysctl::PsrAlloc { cmd, target, info as "u" }
        "struct xen_sysctl_pcitopoinfo" = sysctl::Pcitopoinfo { num_devs, devs, nodes }
        "struct xen_sysctl_cpu_levelling_caps" = sysctl::CpuLevellingCaps { caps }
        "struct xen_sysctl_cpu_featureset" = sysctl::CpuFeatureset { index, nr_features, features }
        "struct xen_sysctl_cpu_policy" = sysctl::CpuPolicy { index, nr_leaves, nr_msrs, leaves, msrs }

        "struct xen_memory_reservation" = memory::MemoryReservation { extent_start, nr_extents, extent_order, mem_flags, domid }
        "struct xen_memory_exchange" = memory::MemoryExchange { in_ as "in", out, nr_exchanged }
        "struct xen_memory_domain" = memory::MemoryDomain { domid }
        "struct xen_machphys_mfn_list" = memory::MachphysMfnList { max_extents, extent_start, nr_extents }
        "struct xen_machphys_mapping" = memory::MachphysMapping { v_start, v_end, max_mfn }
        "struct xen_add_to_physmap" = memory::AddToPhysmap { domid, size, space, idx, gpfn }
        "struct xen_add_to_physmap_batch" = memory::AddToPhysmapBatch {
            domid, space, size, foreign_domid as "u.foreign_domid", idxs, gpfns, errs,
        }
        "struct xen_remove_from_physmap" = memory::RemoveFromPhysmap { domid, gpfn }
        "struct xen_memory_map" = memory::MemoryMap { nr_entries, buffer }
        "struct xen_foreign_memory_map" = memory::ForeignMemoryMap { domid, map }
        "struct xen_pod_target" = memory::PodTarget { target_pages, tot_pages, pod_cache_pages, pod_entries, domid }
        "struct xen_reserved_device_memory" = memory::ReservedDeviceMemory { start_pfn, nr_pages }
        "struct xen_reserved_device_memory_map" = memory::ReservedDeviceMemoryMap {
            flags, nr_entries, buffer, seg as "dev.pci.seg", bus as "dev.pci.bus", devfn as "dev.pci.devfn",
        }
        "struct xen_mem_acquire_resource" = memory::AcquireResource { domid, type_ as "type", id, nr_frames, pad, frame, frame_list }
        "struct xen_vmemrange" = memory::Vmemrange { start, end, flags, nid }
        "struct xen_vnuma_topology_info" = memory::VnumaTopologyInfo {
            domid, nr_vnodes, nr_vcpus, nr_vmemranges, vdistance, vcpu_to_vnode, vmemrange,
        }

        "struct xen_compile_info" = version::CompileInfo { compiler, compile_by, compile_domain, compile_date }
        "struct xen_platform_parameters" = version::PlatformParameters { virt_start }
        "struct xen_feature_info" = version::FeatureInfo { submap_idx, submap }
        "xen_capabilities_info_t" = version::CapabilitiesInfo {}
        "xen_commandline_t" = version::Commandline {}

        "struct xen_platform_op" = platform::PlatformOp { cmd, interface_version, u }
        "struct xenpf_settime32" = platform::Settime32 { secs, nsecs, system_time }
        "struct xenpf_settime64" = platform::Settime64 { secs, nsecs, mbz, system_time }
        "struct xenpf_add_memtype" = platform::AddMemtype { mfn, nr_mfns, type_ as "type", handle, reg }
        "struct xenpf_del_memtype" = platform::DelMemtype { handle, reg }
        "struct xenpf_read_memtype" = platform::ReadMemtype { reg, mfn, nr_mfns, type_ as "type" }
        "struct xenpf_microcode_update" = platform::MicrocodeUpdate { data, length }
        "struct xenpf_platform_quirk" = platform::PlatformQuirk { quirk_id }
        "struct xenpf_efi_runtime_call" = platform::EfiRuntimeCall { function, misc, status, u }
        "struct xenpf_firmware_info" = platform::FirmwareInfo { type_ as "type", index, u }
        "struct xenpf_enter_acpi_sleep" = platform::EnterAcpiSleep { val_a, val_b, sleep_state, flags }
        "struct xenpf_change_freq" = platform::ChangeFreq { flags, cpu, freq }
        "struct xenpf_getidletime" = platform::Getidletime { cpumap_bitmap, cpumap_nr_cpus, idletime, now }
        "struct xen_power_register" = platform::PowerRegister { space_id, bit_width, bit_offset, access_size, address }
        "struct xen_processor_csd" = platform::ProcessorCsd { domain, coord_type, num }
        "struct xen_processor_cx" = platform::ProcessorCx { reg, type_ as "type", latency, power, dpcnt, dp }
        "struct xen_processor_power" = platform::ProcessorPower { count, flags, states }
        "struct xen_pct_register" = platform::PctRegister { descriptor, length, space_id, bit_width, bit_offset, reserved, address }
        "struct xen_processor_px" = platform::ProcessorPx {
            core_frequency, power, transition_latency, bus_master_latency, control, status,
        }
        "struct xen_psd_package" = platform::PsdPackage { num_entries, revision, domain, coord_type, num_processors }
        "struct xen_processor_performance" = platform::ProcessorPerformance {
            flags, platform_limit, control_register, status_register, state_count, states, domain_info, shared_type,
        }
        "struct xenpf_set_processor_pminfo" = platform::SetProcessorPminfo { id, type_ as "type", u }
        "struct xenpf_pcpuinfo" = platform::PcpuInfo { xen_cpuid, max_present, flags, apic_id, acpi_id }
        "struct xenpf_pcpu_version" = platform::PcpuVersion { xen_cpuid, max_present, vendor_id, family, model, stepping }
        "struct xenpf_cpu_ol" = platform::CpuOl { cpuid }
        "struct xenpf_cpu_hotadd" = platform::CpuHotadd { apic_id, acpi_id, pxm }
        "struct xenpf_mem_hotadd" = platform::MemHotadd { spfn, epfn, pxm, flags }
        "struct xenpf_core_parking" = platform::CoreParking { type_ as "type", idle_nums }
        "struct xenpf_resource_entry" = platform::ResourceEntry { cmd as "u.cmd", rsvd, idx, val }
        "struct xenpf_resource_op" = platform::ResourceOp { nr_entries, cpu, entries }
        "struct xenpf_symdata" = platform::Symdata { namelen, symnum, name, address, type_ as "type" }
    }
}

fn ours() -> String {
    let mut text = String::new();
    for shape in shapes() {
        writeln!(text, "{} {}", shape.c_type, shape.size).expect("a String takes any text");
        for (field, offset) in shape.fields {
            writeln!(text, "  {field} {offset}").expect("a String takes any text");
        }
    }
    text
}

#[test]
fn every_size_and_offset_is_what_a_c_compiler_says() {
    insta::assert_snapshot!("recorded_from_c", ours());
}

/// The C program that prints the same list.
fn c_program() -> String {
    let mut text = String::from(
        "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n#define __XEN_TOOLS__ 1\n\
         #include <xen/xen.h>\n#include <xen/domctl.h>\n#include <xen/sysctl.h>\n#include <xen/memory.h>\n\
         #include <xen/version.h>\n#include <xen/platform.h>\n#include <xen/physdev.h>\n\
         #include <xen/arch-x86/xen-mca.h>\nint main(void) {\n",
    );
    for shape in shapes() {
        let c_type = shape.c_type;
        writeln!(text, "printf(\"%s %zu\\n\", \"{c_type}\", sizeof({c_type}));").expect("a String takes any text");
        for (field, _) in shape.fields {
            let offset = match c_type {
                // A bit-field has no offset; it follows `count`.
                "struct xen_processor_power" if field == "flags" => "sizeof(uint32_t)".to_owned(),
                _ => format!("offsetof({c_type}, {field})"),
            };
            writeln!(text, "printf(\"  %s %zu\\n\", \"{field}\", {offset});").expect("a String takes any text");
        }
    }
    text.push_str("return 0; }\n");
    text
}

#[test]
#[ignore = "needs Xen's public headers (Debian: libxen-dev) and a C compiler"]
fn the_recording_is_what_this_machines_c_compiler_says() {
    let dir = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let (source, program) = (dir.join("layout.c"), dir.join("layout"));
    std::fs::write(&source, c_program()).expect("the target directory is writable");
    let compiled = std::process::Command::new("cc")
        .arg(&source)
        .arg("-o")
        .arg(&program)
        .status();
    assert!(
        compiled.expect("cc starts").success(),
        "cc refused {}",
        source.display()
    );
    let answer = std::process::Command::new(&program).output().expect("the program runs");
    let answer = String::from_utf8(answer.stdout).expect("it prints ASCII");
    insta::assert_snapshot!("recorded_from_c", answer);
}
