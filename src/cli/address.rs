//! Where a server is, as people write it: a host's name or IP address, alone or as `host:port`.
//!
//! What no client could connect by is refused where it is written, with what to write instead, and not when the first site fails. No name
//! is looked up here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::de::Error as _;
use serde::{Deserialize as _, Deserializer};

/// The longest name of the DNS, and the longest part between two points.
const NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// A host by which clients connect, without a port: what `--name` takes.
pub(super) fn host(text: &str) -> Result<String, String> {
    refuse_surroundings(text)?;
    if text.starts_with('[') {
        return Err(format!("write an IPv6 address without brackets and port here, not `{text}`"));
    }
    if let Some((name, port)) = text.rsplit_once(':')
        && !name.contains(':')
    {
        let port = if port.is_empty() { String::new() } else { format!(" {port}") };
        return Err(format!("leave out the port{port}: write `{name}`, and `--listen` says the port"));
    }
    fits(text)?;
    Ok(text.to_owned())
}

/// Where a server listens: what `listen`, `--listen` and `--admin-listen` take.
pub(super) fn listening(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.trim().parse() {
        return Ok(address);
    }
    let text = text.trim();
    let meant = match text.parse::<IpAddr>() {
        Ok(address) => format!("it has no port: write {}", SocketAddr::new(address, 4433)),
        Err(_) => match text.rsplit_once(':') {
            _ if text.parse::<u16>().is_ok() => format!("it has no IP address: write 0.0.0.0:{text}"),
            Some(("" | "*", port)) => format!("it has no IP address: write 0.0.0.0:{port}"),
            Some((host, _)) if host.parse::<IpAddr>().is_ok() => {
                "the port is a number from 0 to 65535".to_owned()
            }
            Some((host, port)) if host.parse::<Ipv6Addr>().is_ok() => format!("write [{host}]:{port}"),
            Some((host, _)) if host.contains(|letter: char| letter.is_ascii_alphabetic()) => {
                "names are not looked up here: write the IP address of one of this machine's interfaces"
                    .to_owned()
            }
            _ => "write both".to_owned(),
        },
    };
    Err(format!(
        "`{text}` is no IP address with a port; {meant}. 0.0.0.0:4433 stands for every IPv4 address of this machine, [::]:4433 for every address of it, \
         127.0.0.1:4433 for this machine alone"
    ))
}

/// The same in a file.
pub(super) fn listening_in_file<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    listening(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// `host:port` by which clients connect: what `server`, `servers`, `addresses`, `--server` and `--address` take.
pub(super) fn host_and_port(text: &str) -> Result<String, String> {
    match split(text)? {
        0 => Err(format!("`{text}`: port 0 stands for any; write the port on which the server listens")),
        _ => Ok(text.to_owned()),
    }
}

/// The same where the port may be 0: that of a server whose port is told when it starts.
pub(super) fn host_and_any_port(text: &str) -> Result<(), String> {
    split(text).map(|_| ())
}

/// The port of `host:port`.
fn split(text: &str) -> Result<u16, String> {
    refuse_surroundings(text)?;
    let example = || if text.is_empty() || text.contains(':') { "fed.example.org" } else { text };
    let lacks_port = || format!("`{text}` has no port: write host:port, such as {}:4433", example());
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, port) =
            rest.split_once(']').ok_or_else(|| format!("`{text}`: a bracket is not closed"))?;
        if host.parse::<Ipv6Addr>().is_err() {
            return Err(format!("`{host}` is no IPv6 address, and only those stand in brackets"));
        }
        (host, port.strip_prefix(':').ok_or_else(lacks_port)?)
    } else {
        if text.parse::<Ipv6Addr>().is_ok() {
            // `::1:4433` is an address, and whoever wrote it hardly meant that.
            if let Some((host, port)) = text.rsplit_once(':')
                && host.parse::<Ipv6Addr>().is_ok()
                && port.parse::<u16>().is_ok_and(|port| port > 0)
            {
                return Err(format!(
                    "`{text}`: an IPv6 address stands in brackets before its port: write [{host}]:{port}, or [{text}]:4433 if all of it is the address"
                ));
            }
            return Err(format!("`{text}`: write an IPv6 address in brackets and a port, [{text}]:4433"));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(lacks_port)?;
        // Not a valid address either, so that no port can be told from it.
        if host.contains(':') {
            return Err(format!(
                "`{text}`: `{host}` is no IPv6 address, and no host has a colon; an IPv6 address stands in brackets before its port, [2001:db8::7]:4433"
            ));
        }
        (host, port)
    };
    fits(host)?;
    let is_number = !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit());
    port.parse().ok().filter(|_| is_number).ok_or_else(|| {
        if port.is_empty() {
            lacks_port()
        } else {
            format!("`{text}`: the port is a number from 1 to 65535, not `{port}`")
        }
    })
}

/// Refuses what people paste around a host.
fn refuse_surroundings(text: &str) -> Result<(), String> {
    if text.trim().is_empty() {
        return Err(
            "give the DNS name or IP address by which sites reach the server, such as fed.example.org".into(),
        );
    }
    if text.chars().all(|letter| letter == '.') {
        return Err(format!(
            "`{text}` is a folder, and no host: give the DNS name or IP address by which sites reach the server, such as fed.example.org"
        ));
    }
    if text.contains(char::is_whitespace) || text.contains([',', ';']) {
        return Err(format!(
            "`{text}`: one host alone, without spaces and commas; repeat it for more than one"
        ));
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        let rest = rest.split(['/', '?', '#']).next().unwrap_or_default();
        return Err(format!("leave out `{scheme}://`, and what follows the host: `{rest}`"));
    }
    if let Some(at) = text.find(['/', '?', '#', '@', '\\', '%']) {
        let letter = text[at..].chars().next().unwrap_or_default();
        return Err(format!("`{text}`: a host has no `{letter}`; write its DNS name or IP address alone"));
    }
    Ok(())
}

/// Whether a client can connect to a host of this name.
fn fits(name: &str) -> Result<(), String> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return reaches(address);
    }
    let wrong = |what: &str| Err(format!("`{name}` is no DNS name and no IP address: {what}"));
    if name.is_empty() {
        return Err("the host before the port is missing: write it as fed.example.org:4433".into());
    }
    if name.contains('*') {
        return wrong("a pattern names no machine");
    }
    if !name.is_ascii() {
        return wrong("write it as the DNS has it, in ASCII (xn--...)");
    }
    if name.ends_with('.') {
        return wrong("leave out the point at its end");
    }
    if name.len() > NAME_MAX {
        return wrong("a name has 253 letters at most");
    }
    for label in name.split('.') {
        let is_letter = |letter: u8| letter.is_ascii_alphanumeric() || letter == b'-' || letter == b'_';
        if label.is_empty() || label.len() > LABEL_MAX {
            return wrong("each part between two points has 1 to 63 letters");
        }
        if !label.bytes().all(is_letter) || label.starts_with('-') || label.ends_with('-') {
            return wrong("its parts are letters, digits, `_` and, within, `-`");
        }
    }
    if let Some(address) = historic_ipv4(name) {
        reaches(IpAddr::V4(address)).map_err(|fault| format!("`{name}`: {fault}"))?;
        return wrong(&format!(
            "some resolvers take it for an IPv4 address in an old notation, and others for a name; write {address} if that is meant"
        ));
    }
    let last = name.rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|digit| digit.is_ascii_digit()) {
        return wrong("the last part of a name is no number, and an IP address has four numbers up to 255");
    }
    Ok(())
}

/// The address that a host means in one of the notations of `inet_aton`: one to four numbers, decimal, octal after `0` or hexadecimal after
/// `0x`, of which the last fills what is left. RFC 6943, section 3.1.1, tells why nobody should write these.
fn historic_ipv4(name: &str) -> Option<Ipv4Addr> {
    let number = |part: &str| match part.strip_prefix("0x").or_else(|| part.strip_prefix("0X")) {
        Some("") => Some(0),
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None if part.len() > 1 && part.starts_with('0') => u32::from_str_radix(part, 8).ok(),
        None => part.parse().ok(),
    };
    let parts: Vec<u32> = name.split('.').map(number).collect::<Option<_>>()?;
    let (last, first) = parts.split_last().filter(|(_, first)| first.len() < 4)?;
    let bits = 32 - 8 * first.len() as u32;
    if first.iter().any(|part| *part > 255) || u64::from(*last) >> bits != 0 {
        return None;
    }
    let front = first.iter().enumerate().map(|(place, part)| part << (24 - 8 * place)).sum::<u32>();
    Some(Ipv4Addr::from(front | last))
}

/// Whether packets to this address arrive at one machine.
fn reaches(address: IpAddr) -> Result<(), String> {
    if let IpAddr::V6(six) = address
        && let Some(four) = six.to_ipv4_mapped()
    {
        reaches(IpAddr::V4(four))?;
        return Err(format!("{address} is the IPv4 address {four} in IPv6 notation; write {four}"));
    }
    if let IpAddr::V4(four) = address
        && four.octets()[0] == 0
        && !four.is_unspecified()
    {
        return Err(format!(
            "no site can connect to {address}: addresses that begin with 0 belong to no host"
        ));
    }
    if address.is_unspecified() {
        return Err(format!(
            "no site can connect to {address}: it stands for every address of this machine, and is for `--listen`; write the name or the \
             address by which sites reach it, or `localhost` where all of them are on this machine"
        ));
    }
    let is_broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    if address.is_multicast() || is_broadcast {
        return Err(format!("no site can connect to {address}: it stands for many machines"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hosts by which nobody can connect, and a word of what is said of each.
    const NOBODYS: [(&str, &str); 44] = [
        ("", "DNS name"),
        (" ", "DNS name"),
        ("0.0.0.0", "--listen"),
        ("::", "--listen"),
        ("0:0:0:0:0:0:0:0", "--listen"),
        ("224.0.0.1", "many machines"),
        ("ff02::1", "many machines"),
        ("255.255.255.255", "many machines"),
        ("fed example", "spaces"),
        (" fed.example.org", "spaces"),
        ("fed.example.org\n", "spaces"),
        ("a.example,b.example", "repeat"),
        ("https://fed.example.org", "leave out `https://`"),
        ("quic://fed.example.org:4433/x", "`fed.example.org:4433`"),
        ("fed.example.org/path", "no `/`"),
        ("ada@fed.example.org", "no `@`"),
        ("fe80::1%eth0", "no `%`"),
        ("*.example.org", "pattern"),
        ("münchen.example", "ASCII"),
        ("fed.example.org.", "point at its end"),
        ("fed..example", "1 to 63"),
        ("-fed.example", "letters"),
        ("1.2.3.4.5", "four numbers"),
        ("10.0.0.256", "four numbers"),
        ("::ffff:0.0.0.0", "--listen"),
        ("::ffff:127.0.0.1", "write 127.0.0.1"),
        ("::ffff:7f00:1", "write 127.0.0.1"),
        ("::ffff:255.255.255.255", "many machines"),
        ("0.0.0.1", "begin with 0"),
        ("0.255.3.4", "begin with 0"),
        ("0", "--listen"),
        ("0x0", "--listen"),
        ("2130706433", "write 127.0.0.1"),
        ("017700000001", "write 127.0.0.1"),
        ("0x7f000001", "write 127.0.0.1"),
        ("0X7F.1", "write 127.0.0.1"),
        ("127.1", "write 127.0.0.1"),
        ("127.0.1", "write 127.0.0.1"),
        ("010.0.0.1", "write 8.0.0.1"),
        ("10.0.0.010", "write 10.0.0.8"),
        ("0x7f.0.0.0x1", "write 127.0.0.1"),
        ("4294967296", "four numbers"),
        ("1.2.3", "write 1.2.0.3"),
        ("..", "folder"),
    ];

    #[test]
    fn what_no_client_can_connect_by_is_refused_with_what_to_write() {
        for (text, word) in NOBODYS {
            let said = host(text).unwrap_err();
            assert!(said.contains(word), "{text:?}: {said}");
            assert!(host_and_port(text).is_err(), "{text:?} has no port, either");
            let with_port = if text.contains(':') && !text.contains('/') {
                format!("[{text}]:1")
            } else {
                format!("{text}:1")
            };
            assert!(host_and_port(&with_port).is_err(), "{with_port:?}");
        }
        for (text, word) in [
            ("fed.example.org:4433", "leave out the port 4433"),
            ("localhost:", "leave out"),
            ("[::1]", "brackets"),
        ] {
            assert!(host(text).unwrap_err().contains(word), "{text}");
        }
        assert!(host(&format!("{}.org", "a".repeat(64))).is_err());
        assert!(host(&"a.".repeat(127)).is_err());
        for text in [
            "localhost",
            "fed.example.org",
            "FED",
            "fed_1",
            "xn--mnchen-3ya.example",
            "10.0.0.1",
            "::1",
            "2001:db8::7",
            "3com.example",
        ] {
            assert_eq!(host(text).as_deref(), Ok(text));
        }
    }

    #[test]
    fn where_a_server_listens_is_an_address_of_this_machine_and_a_port() {
        for text in ["0.0.0.0:4433", "[::]:0", "127.0.0.1:65535"] {
            assert_eq!(listening(text).unwrap().to_string(), text);
        }
        for (text, word) in [
            ("0.0.0.0", "write 0.0.0.0:4433"),
            ("::", "write [::]:4433"),
            ("4433", "write 0.0.0.0:4433"),
            (":4433", "write 0.0.0.0:4433"),
            ("*:4433", "write 0.0.0.0:4433"),
            ("127.0.0.1:x", "0 to 65535"),
            ("127.0.0.1:70000", "0 to 65535"),
            ("localhost:4433", "names are not looked up"),
            ("", "no IP address with a port"),
        ] {
            let said = listening(text).unwrap_err();
            assert!(said.contains(word) && said.contains("0.0.0.0:4433 stands for"), "{text:?}: {said}");
        }
    }

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for text in ["h:1", "fed.example.org:4433", "10.0.0.1:65535", "[::1]:443", "[2001:db8::7]:4433"] {
            assert_eq!(host_and_port(text).as_deref(), Ok(text));
        }
        let wrong = [
            ("fed.example.org", "fed.example.org:4433"),
            ("fed.example.org:", "has no port"),
            ("fed.example.org:x", "number"),
            ("fed.example.org:+1", "number"),
            ("fed.example.org:65536", "number"),
            ("fed.example.org:0", "port 0"),
            (":4433", "host before the port"),
            ("::1", "[::1]:4433"),
            ("::1:4433", "[::1]:4433"),
            ("2001:db8::7:4433", "[2001:db8::7]:4433"),
            ("2001:db8::7::4433", "[2001:db8::7]:4433"),
            ("2001:db8::7", "[2001:db8::7]:4433"),
            ("[::1]", "has no port"),
            ("[::1", "not closed"),
            ("[fed]:1", "no IPv6 address"),
            ("0.0.0.0:4433", "--listen"),
            ("[::]:4433", "--listen"),
            ("https://fed.example.org:4433", "leave out"),
            ("fed.example.org: 4433", "spaces"),
        ];
        for (text, word) in wrong {
            let said = host_and_port(text).unwrap_err();
            assert!(said.contains(word), "{text:?}: {said}");
        }
        assert!(host_and_any_port("localhost:0").is_ok() && host_and_any_port("localhost").is_err());
    }
}
