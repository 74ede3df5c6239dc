//! Whose the socket at the other end of a loopback connection is, from the kernel's table of TCP sockets. Asked by the
//! guard of the operator's routes.
//!
//! What holds always: no more than [`TABLE_BYTES_MAX`] of a table are read, a line at a time; what cannot be found is
//! nobody's.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Sockets of this network namespace, IPv4 and IPv6.
const TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
/// Most of a table that is looked at: some 400 000 sockets.
const TABLE_BYTES_MAX: u64 = 64 << 20;
/// A connection with a process at this end, as the table says it; closed ones are shown as root's.
const ESTABLISHED: &str = "01";

/// Whether there is a connected socket at `address`, and every one there belongs to a user that `is_trusted`. There may
/// be several with different other ends.
pub(super) fn are_owners(address: SocketAddr, is_trusted: impl Fn(u32) -> bool) -> bool {
    let tables = TABLES.iter().filter_map(|table| File::open(table).ok());
    let lines =
        tables.flat_map(|table| BufReader::new(table.take(TABLE_BYTES_MAX)).lines().map_while(Result::ok));
    judge(lines, address, is_trusted)
}

fn judge(lines: impl Iterator<Item = String>, address: SocketAddr, is_trusted: impl Fn(u32) -> bool) -> bool {
    let wanted = (address.ip().to_canonical(), address.port());
    let mut owners = lines.filter_map(|line| owner_at(&line, wanted)).peekable();
    owners.peek().is_some() && owners.all(is_trusted)
}

/// The user of a line's socket, if that is connected and at `wanted`.
fn owner_at(line: &str, wanted: (IpAddr, u16)) -> Option<u32> {
    // sl, local address, other address, state, queues, timer, retransmissions, user: proc(5).
    let mut words = line.split_whitespace().skip(1);
    let local = parse(words.next()?)?;
    let state = words.nth(1)?;
    (local == wanted && state == ESTABLISHED).then_some(())?;
    words.nth(3)?.parse().ok()
}

/// `0100007F:1F90`: each 32 bits of the address in the machine's order, the port as one reads it.
fn parse(text: &str) -> Option<(IpAddr, u16)> {
    let (digits, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(digits.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match digits.len() {
        8 => IpAddr::from(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (part, at) in bytes.chunks_exact_mut(4).zip([0, 8, 16, 24]) {
                part.copy_from_slice(&word(at)?);
            }
            IpAddr::from(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some((ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_connection_on_this_host_is_our_own_and_a_closed_port_is_nobodys() {
        let own = nix::unistd::geteuid().as_raw();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // A host without IPv6 has nothing to ask about it.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let peer = client.local_addr().unwrap();
            assert!(are_owners(peer, |uid| uid == own), "{peer}");
            assert!(!are_owners(peer, |uid| uid != own), "{peer}");
            let alone = TcpListener::bind(address).unwrap();
            assert!(!are_owners(alone.local_addr().unwrap(), |_| true), "it only listens");
        }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn every_connected_socket_at_the_address_counts() {
        let line = |local: &str, state: &str, uid: u32| {
            format!(
                " 7: {local} 0100007F:1F90 {state} 00000000:00000000 00:00000000 00000000 {uid:>5} 0 99 1 0"
            )
        };
        let check = |lines: &[String], expected| {
            let peer = "127.0.0.1:50000".parse().unwrap();
            assert_eq!(judge(lines.iter().cloned(), peer, |uid| uid == 7), expected, "{lines:?}");
        };
        let header =
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid".to_owned();
        let (here, elsewhere) = ("0100007F:C350", "0100007F:C351");
        let mapped = "0000000000000000FFFF00000100007F:C350";
        check(std::slice::from_ref(&header), false);
        check(&[header, line(elsewhere, "01", 33), line(here, "01", 7)], true);
        check(&[line(mapped, "01", 7)], true);
        check(&[line(here, "01", 7), line(here, "01", 33)], false);
        check(&[line(here, "06", 7)], false);
        check(&[line(here, "01", 7), line(here, "06", 0)], true);
        check(&["7: x y".to_owned(), "é".to_owned(), String::new()], false);
    }
}
