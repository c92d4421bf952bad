//! The host of a node's address, fit to be dialled and to be an argument of a program.

use std::net::{IpAddr, Ipv6Addr};

/// RFC 1035: the longest name.
const NAME_BYTES_MAX: usize = 253;

/// A host name or an IP address. Never begins with `-`, never holds a space or a sign that a shell knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host(String);

/// The node named an address that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the node's address {0:?} is not HOST:PORT")]
pub(super) struct NoHost(String);

impl Host {
    /// Of `host:port` or `[v6]:port`, as a node says it.
    ///
    /// # Errors
    /// When there is no host in it, or one that no resolver knows.
    pub(super) fn of_address(address: &str) -> Result<Self, NoHost> {
        let wrong = || NoHost(address.chars().take(NAME_BYTES_MAX).collect());
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        port.parse::<u16>().map_err(|_| wrong())?;
        if let Some(v6) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let v6: Ipv6Addr = v6.parse().map_err(|_| wrong())?;
            return Ok(Self(v6.to_string()));
        }
        let is_address = host.parse::<IpAddr>().is_ok_and(|address| address.is_ipv4());
        if is_address || is_name(host) { Ok(Self(host.to_owned())) } else { Err(wrong()) }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    text.len() <= NAME_BYTES_MAX && text.trim_end_matches('.').split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_an_address_or_a_plain_name() {
        for (address, host) in [
            ("10.0.0.7:7444", Some("10.0.0.7")),
            ("[2001:db8::1]:7444", Some("2001:db8::1")),
            ("gpu-7.zone_a.example.:7444", Some("gpu-7.zone_a.example.")),
            ("-oProxyCommand=x:7444", None),
            ("a.-b:7444", None),
            ("a b:7444", None),
            ("$(reboot):7444", None),
            ("a;b:7444", None),
            ("user@host:7444", None),
            ("2001:db8::1:7444", None),
            (":7444", None),
            ("host", None),
            ("host:port", None),
        ] {
            assert_eq!(Host::of_address(address).ok().as_ref().map(Host::as_str), host, "{address}");
        }
    }
}
