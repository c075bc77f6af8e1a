//! Lists of host CPUs as people write them: `"all"`, `"0-3,^1,8"`.

use std::collections::BTreeSet;

/// Which CPUs a vcpu may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpuList {
    /// Any.
    All,
    /// These.
    These(BTreeSet<u32>),
}

/// Highest CPU number anyone may name.
const MAX_CPU: u32 = 4095;

/// Reads a list. Parts with `^` are taken away from what stands before them.
pub fn parse_cpu_list(text: &str) -> Result<CpuList, String> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("all") {
        return Ok(CpuList::All);
    }
    let mut cpus = BTreeSet::new();
    for part in text.split(',').map(str::trim) {
        let (takes_away, range) = match part.strip_prefix('^') {
            Some(rest) => (true, rest.trim()),
            None => (false, part),
        };
        if range.starts_with("node") {
            return Err(format!(
                "`{part}`: lists of NUMA nodes are not supported; name the CPUs"
            ));
        }
        let number = |word: &str| {
            word.trim()
                .parse::<u32>()
                .ok()
                .filter(|cpu| *cpu <= MAX_CPU)
                .ok_or_else(|| format!("`{part}` is no CPU or range of CPUs"))
        };
        let (first, last) = match range.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(range)?, number(range)?),
        };
        if last < first {
            return Err(format!("`{part}` runs backwards"));
        }
        for cpu in first..=last {
            if takes_away {
                cpus.remove(&cpu);
            } else {
                cpus.insert(cpu);
            }
        }
    }
    if cpus.is_empty() {
        Err("no CPU is left".to_owned())
    } else {
        Ok(CpuList::These(cpus))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_and_take_away_in_order() {
        assert_eq!(
            parse_cpu_list("0-3, ^1,8"),
            Ok(CpuList::These(BTreeSet::from([0, 2, 3, 8])))
        );
        assert_eq!(parse_cpu_list("all"), Ok(CpuList::All));
        assert!(parse_cpu_list("3-1").is_err() && parse_cpu_list("^1").is_err() && parse_cpu_list("x").is_err());
    }
}
