//! Who holds a UDP port, as far as the agent may see.

use std::fs;
use std::path::Path;

/// The holder of a UDP port in this network namespace, in words.
pub(super) fn holder(port: u16) -> Option<String> {
    let inode = ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .find_map(|table| inode_on_port(&table, port))?;
    Some(
        process_with(inode)
            .unwrap_or_else(|| format!("a socket (inode {inode}) of no process that the agent can see")),
    )
}

/// Finds a port in /proc/net/udp (`udp4_format_sock` in net/ipv4/udp.c): the socket's inode.
fn inode_on_port(table: &str, port: u16) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let (_, local_port) = fields.nth(1)?.rsplit_once(':')?;
        let inode = fields.nth(7)?.parse().ok()?;
        (u16::from_str_radix(local_port, 16) == Ok(port)).then_some(inode)
    })
}

fn process_with(inode: u64) -> Option<String> {
    let wanted = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let path = process.path();
        let Some(pid) = path
            .file_name()
            .and_then(|name| name.to_str())
            .filter(|name| name.parse::<u32>().is_ok())
        else {
            continue;
        };
        let holds = |file: &Path| fs::read_link(file).is_ok_and(|target| target.to_str() == Some(&wanted));
        if fs::read_dir(path.join("fd"))
            .is_ok_and(|mut files| files.any(|file| file.is_ok_and(|file| holds(&file.path()))))
        {
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            return Some(format!("the process {} (PID {pid})", name.trim()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
10547: 00000000:2118 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 33488 2 00000000199dafce 0
10548: 0100007F:2119 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 33489 2 00000000199dafcf 0
";

    #[test]
    fn a_port_is_found_by_its_number() {
        assert_eq!(inode_on_port(TABLE, 8472), Some(33488));
        assert_eq!(inode_on_port(TABLE, 8473), Some(33489));
        assert_eq!(inode_on_port(TABLE, 4789), None);
    }
}
