//! Telling the service manager how a program is (sd_notify(3)): ready, what it does, alive, stopping.
//!
//! One datagram a word to the socket that `NOTIFY_SOCKET` names. Without that variable, or off Linux, nothing happens.

use std::time::Duration;

/// The line to the service manager, if there is one.
#[derive(Debug)]
pub(super) struct Notify {
    #[cfg(target_os = "linux")]
    socket: Option<(std::os::unix::net::UnixDatagram, std::os::unix::net::SocketAddr)>,
    alive_within: Option<Duration>,
}

impl Notify {
    /// As the environment says.
    pub(super) fn from_environment() -> Self {
        Self::new(|name| std::env::var(name).ok())
    }

    fn new(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str| lookup(name).and_then(|text| text.parse::<u64>().ok());
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let alive_within =
            number("WATCHDOG_USEC").filter(|micros| ours && *micros > 0).map(Duration::from_micros);
        Self {
            #[cfg(target_os = "linux")]
            socket: lookup("NOTIFY_SOCKET").and_then(|name| connect(&name)),
            alive_within,
        }
    }

    /// How often to say that the program is alive: twice as often as the service manager wants to hear it.
    pub(super) fn pulse(&self) -> Option<Duration> {
        self.alive_within.map(|within| within / 2)
    }

    /// The program does its work from now on.
    pub(super) fn ready(&self, status: &str) {
        self.say(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// What it does, for `systemctl status`.
    pub(super) fn status(&self, status: &str) {
        self.say(&format!("STATUS={}", one_line(status)));
    }

    /// It is alive.
    pub(super) fn alive(&self) {
        if self.alive_within.is_some() {
            self.say("WATCHDOG=1");
        }
    }

    /// Does the work, and says meanwhile as often as it must that the program is alive.
    pub(super) async fn pulsing<T>(&self, work: impl Future<Output = T>) -> T {
        // Without a watchdog there is nothing to tell, and once a minute is not often.
        let mut pulse = tokio::time::interval(self.pulse().unwrap_or(Duration::from_secs(60)));
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = pulse.tick() => self.alive(),
            }
        }
    }

    /// It is about to end.
    pub(super) fn stopping(&self) {
        self.say("STOPPING=1");
    }

    #[cfg(target_os = "linux")]
    fn say(&self, words: &str) {
        if let Some((socket, to)) = &self.socket
            && let Err(error) = socket.send_to_addr(words.as_bytes(), to)
        {
            tracing::debug!("the service manager does not hear: {error}");
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn say(&self, _: &str) {}
}

/// A newline would begin another assignment.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(target_os = "linux")]
fn connect(name: &str) -> Option<(std::os::unix::net::UnixDatagram, std::os::unix::net::SocketAddr)> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let to = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(name),
    };
    let socket = UnixDatagram::unbound();
    // It must never hold up the work.
    let ready = socket.and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
    ready.and_then(|socket| Ok((socket, to?))).ok()
}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn the_service_manager_hears_each_word_and_a_status_is_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let lookup = |name: &str| match name {
            "NOTIFY_SOCKET" => path.to_str().map(str::to_owned),
            "WATCHDOG_USEC" => Some("3000000".to_owned()),
            _ => None,
        };
        let notify = Notify::new(lookup);
        assert_eq!(notify.pulse(), Some(Duration::from_millis(1500)));
        notify.ready("calling\nREADY=0");
        notify.alive();
        notify.stopping();
        let mut heard = [0; 100];
        for words in ["READY=1\nSTATUS=calling READY=0", "WATCHDOG=1", "STOPPING=1"] {
            let length = manager.recv(&mut heard).unwrap();
            assert_eq!(std::str::from_utf8(&heard[..length]), Ok(words));
        }
        let silent = Notify::new(|_| None);
        silent.ready("nobody listens");
        assert_eq!(silent.pulse(), None);
    }

    #[test]
    fn a_watchdog_of_another_process_is_not_ours() {
        let lookup = |name: &str| match name {
            "WATCHDOG_USEC" => Some("3000000".to_owned()),
            "WATCHDOG_PID" => Some((std::process::id() + 1).to_string()),
            _ => None,
        };
        assert_eq!(Notify::new(lookup).pulse(), None);
    }
}
