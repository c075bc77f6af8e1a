//! How much one unprivileged domain may have. 0 means no limit.

/// The limits of every unprivileged domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Nodes it owns.
    pub nodes: u32,
    /// Bytes of one node: value, permissions and children's names.
    pub node_size: u32,
    /// Watches it has set.
    pub watches: u32,
    /// Transactions it has open.
    pub transactions: u32,
    /// Paths that one transaction has read or written.
    pub transaction_nodes: u32,
    /// Permission entries of one node.
    pub permissions: u32,
    /// Answers and events that wait for it to read; it is not listened to while there are more answers.
    pub outstanding: u32,
    /// Requests per second in the long run.
    pub ops_per_second: u32,
    /// Requests it may save up for a burst.
    pub ops_burst: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            nodes: 1000,
            node_size: 2048,
            watches: 128,
            transactions: 10,
            transaction_nodes: 1024,
            permissions: 5,
            outstanding: 20,
            ops_per_second: 2000,
            ops_burst: 10_000,
        }
    }
}

impl Limits {
    /// None at all.
    pub const NONE: Limits = Limits {
        nodes: 0,
        node_size: 0,
        watches: 0,
        transactions: 0,
        transaction_nodes: 0,
        permissions: 0,
        outstanding: 0,
        ops_per_second: 0,
        ops_burst: 0,
    };

    /// Every limit's name and value.
    pub fn list(&self) -> [(&'static str, u32); 9] {
        [
            ("nodes", self.nodes),
            ("node-size", self.node_size),
            ("watches", self.watches),
            ("transactions", self.transactions),
            ("transaction-nodes", self.transaction_nodes),
            ("permissions", self.permissions),
            ("outstanding", self.outstanding),
            ("ops-per-second", self.ops_per_second),
            ("ops-burst", self.ops_burst),
        ]
    }

    /// The limit of that name, to change it; two have other names with C's xenstored.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut u32> {
        Some(match name {
            "nodes" => &mut self.nodes,
            "node-size" | "size" => &mut self.node_size,
            "watches" => &mut self.watches,
            "transactions" => &mut self.transactions,
            "transaction-nodes" => &mut self.transaction_nodes,
            "permissions" | "node-permissions" => &mut self.permissions,
            "outstanding" => &mut self.outstanding,
            "ops-per-second" => &mut self.ops_per_second,
            "ops-burst" => &mut self.ops_burst,
            _ => return None,
        })
    }
}

/// Whether `amount` is more than a limit allows.
pub fn exceeds(amount: usize, limit: u32) -> bool {
    limit != 0 && amount > limit as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_cs_xenstored_are_known() {
        let mut limits = Limits::default();
        for name in [
            "size",
            "node-permissions",
            "nodes",
            "watches",
            "transactions",
            "outstanding",
            "transaction-nodes",
        ] {
            assert!(limits.get_mut(name).is_some(), "{name}");
        }
    }

    #[test]
    fn every_listed_limit_can_be_set_by_its_name() {
        let mut limits = Limits::default();
        for (name, value) in Limits::default().list() {
            *limits.get_mut(name).unwrap() = value + 1;
        }
        assert!(
            limits
                .list()
                .iter()
                .zip(Limits::default().list())
                .all(|(new, old)| new.1 == old.1 + 1)
        );
    }
}
