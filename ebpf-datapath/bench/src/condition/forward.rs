//! Many rules in the forward hook, one after the other, as NetworkPolicies that name blocks of addresses become: from this block
//! to these pods, no.

use std::fmt::Write;

/// How many there are in each family's table, the one that asks for the state not counted.
pub(super) const RULES: u16 = 500;

/// The rules, as nft reads them.
pub(super) fn rules() -> String {
    let mut text = String::new();
    for family in ["ip", "ip6"] {
        // The first rule asks for the packet's state, which turns connection tracking on in the namespace.
        let _ = writeln!(
            text,
            "table {family} podlane-policy {{\n chain forward {{\n  type filter hook forward priority filter; policy accept;\n  ct \
             state untracked accept"
        );
        for number in 0..RULES {
            // Blocks for documentation and benchmarks (RFC 2544, RFC 3849), which nobody here is in.
            let (pods, block) = match family {
                "ip" => (
                    "172.20.0.0/16",
                    format!("198.18.{}.{}/28", number / 16, number % 16 * 16),
                ),
                _ => ("fd20::/48", format!("2001:db8:0:{number:x}0::/60")),
            };
            let _ = writeln!(text, "  {family} daddr {pods} {family} saddr {block} drop");
        }
        text.push_str(" }\n}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_have_as_many_as_are_told() {
        assert_eq!(rules().matches(" drop\n").count(), usize::from(2 * RULES));
    }
}
