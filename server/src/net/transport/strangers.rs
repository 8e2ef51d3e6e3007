//! Those who have shown no certificate yet: how many places they have, and how many handshakes an address may begin.
//!
//! A site cannot be told from a stranger before its handshake is done, so nobody is turned away because others came first: when
//! all places are taken, the address that holds most of them loses its oldest, to whoever comes. An honest peer needs its place for a
//! round trip or two; one that holds on to a place without going on loses it. An address is an IPv4 address or an IPv6 network
//! of 64 bits, which is what one customer of a network is given. Memory is bounded by the number of places and by [`KNOWN_MAX`].
//!
//! It judges no certificate and reads no message.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Handshakes that one address may begin at once, and a second in the long run. Whoever shows a certificate gets them back.
const BURST: f64 = 1024.0;
const PER_SECOND: f64 = 256.0;
/// Addresses whose handshakes are counted apart; those beyond share one count.
const KNOWN_MAX: usize = 4096;
/// The least time between two lines of a log about the same matter.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Whom an address belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    V4(u32),
    V6(u64),
    /// Those that are not told apart.
    Others,
}

impl Origin {
    pub(crate) fn of(address: SocketAddr) -> Self {
        match address.ip().to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }
}

/// What is kept of those who come over UDP.
pub(crate) struct Strangers {
    /// Places of those whose handshake is not done.
    pub(crate) handshakes: Arc<Places>,
    pub(crate) rates: Rates,
    pub(crate) lines: Lines,
}

impl Strangers {
    pub(crate) fn new(handshakes: usize) -> Self {
        Self { handshakes: Places::new(handshakes), rates: Rates::default(), lines: Lines::default() }
    }
}

/// A number of places.
pub(crate) struct Places {
    most: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    serial: u64,
    count: usize,
    /// Those that can be taken away, oldest first.
    waiting: BTreeMap<Origin, BTreeMap<u64, CancellationToken>>,
}

impl Taken {
    fn remove(&mut self, origin: Origin, serial: u64) -> Option<CancellationToken> {
        let of = self.waiting.get_mut(&origin)?;
        let found = of.remove(&serial);
        if of.is_empty() {
            self.waiting.remove(&origin);
        }
        found
    }

    /// The oldest of the address that holds most, the newcomer's own counted with the newcomer.
    fn heaviest(&self, newcomer: Origin) -> Option<(Origin, u64)> {
        let weight = |origin: Origin, of: &BTreeMap<u64, CancellationToken>| {
            of.len() + usize::from(origin == newcomer)
        };
        let oldest = |of: &BTreeMap<u64, CancellationToken>| of.first_key_value().map(|(serial, _)| *serial);
        let all =
            self.waiting.iter().filter_map(|(origin, of)| Some((weight(*origin, of), oldest(of)?, *origin)));
        all.max_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1))).map(|(_, serial, origin)| (origin, serial))
    }
}

impl Places {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most: most.max(1), taken: Mutex::default() })
    }

    /// A place for somebody from `origin`. When there is none left, somebody else's is taken away; `None` when all are
    /// [kept](Place::keep).
    pub(crate) fn take(self: &Arc<Self>, origin: Origin) -> Option<Place> {
        let mut taken = self.taken();
        if taken.count >= self.most {
            let (heaviest, oldest) = taken.heaviest(origin)?;
            taken.remove(heaviest, oldest)?.cancel();
            taken.count -= 1;
        }
        taken.serial += 1;
        taken.count += 1;
        let (serial, lost) = (taken.serial, CancellationToken::new());
        taken.waiting.entry(origin).or_default().insert(serial, lost.clone());
        Some(Place { of: Arc::clone(self), origin, serial, lost, kept: false })
    }

    /// How many are taken.
    pub(crate) fn count(&self) -> usize {
        self.taken().count
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of the places, until it is dropped or lost.
pub(crate) struct Place {
    of: Arc<Places>,
    origin: Origin,
    serial: u64,
    lost: CancellationToken,
    kept: bool,
}

impl Place {
    /// Does `work` unless the place is lost before it is done; `None` then.
    pub(crate) async fn while_kept<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.lost.run_until_cancelled(work).await
    }

    /// Keeps the place from now on, for work that takes no longer because of the peer; `false` when it is lost already.
    pub(crate) fn keep(&mut self) -> bool {
        self.kept |= self.of.taken().remove(self.origin, self.serial).is_some();
        self.kept
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.of.taken();
        if self.kept || taken.remove(self.origin, self.serial).is_some() {
            taken.count -= 1;
        }
    }
}

/// How many handshakes each address may begin.
#[derive(Default)]
pub(crate) struct Rates(Mutex<BTreeMap<Origin, Rate>>);

#[derive(Clone, Copy)]
struct Rate {
    level: f64,
    at: Instant,
}

impl Rate {
    fn refilled(self, now: Instant) -> f64 {
        (self.level + now.saturating_duration_since(self.at).as_secs_f64() * PER_SECOND).min(BURST)
    }
}

/// What to do with a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Begin,
    /// The address must first show that it is the sender's own: else anybody could use up the handshakes of another.
    Prove,
    /// It began too many.
    Refuse,
}

impl Rates {
    /// Counts a handshake of `origin`, whose address is `proven` or may be forged.
    pub(crate) fn begin(&self, origin: Origin, proven: bool, now: Instant) -> Turn {
        let mut rates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if rates.len() >= KNOWN_MAX && !rates.contains_key(&origin) {
            rates.retain(|_, rate| rate.refilled(now) < BURST);
        }
        let known = rates.len() < KNOWN_MAX || rates.contains_key(&origin);
        let origin = if known { origin } else { Origin::Others };
        let rate = rates.entry(origin).or_insert(Rate { level: BURST, at: now });
        let level = rate.refilled(now);
        let turn = match proven {
            false if level < BURST / 2.0 => Turn::Prove,
            _ if level < 1.0 => Turn::Refuse,
            _ => Turn::Begin,
        };
        *rate = Rate { level: level - f64::from(u8::from(turn == Turn::Begin)), at: now };
        turn
    }

    /// Gives back what a handshake took that ended with a certificate of the federation.
    pub(crate) fn end_well(&self, origin: Origin) {
        let mut rates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rate) = rates.get_mut(&origin) {
            rate.level += 1.0;
        }
    }
}

/// Lines about one matter that strangers can cause, a few at a time: a log must not be what they fill.
#[derive(Default)]
pub(crate) struct Lines(Mutex<(Option<Instant>, u64)>);

impl Lines {
    /// Whether to write this one; then what is to be added about those that were not written.
    pub(crate) fn next(&self, now: Instant) -> Option<String> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0.is_some_and(|last| now.saturating_duration_since(last) < LINE_EVERY) {
            state.1 += 1;
            return None;
        }
        let left_out = std::mem::take(&mut state.1);
        state.0 = Some(now);
        Some(if left_out == 0 {
            String::new()
        } else {
            format!(" (and {left_out} more since the last line)")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(last: u8) -> Origin {
        Origin::of(SocketAddr::from(([127, 0, 0, last], 1)))
    }

    #[test]
    fn an_address_is_an_ipv4_address_or_a_network_of_ipv6() {
        let of = |text: &str| Origin::of(text.parse().unwrap());
        assert_eq!(of("192.0.2.1:1"), of("[::ffff:192.0.2.1]:9"));
        assert_ne!(of("192.0.2.1:1"), of("192.0.2.2:1"));
        assert_eq!(of("[2001:db8:1:2::1]:1"), of("[2001:db8:1:2:ffff::9]:7"));
        assert_ne!(of("[2001:db8:1:2::1]:1"), of("[2001:db8:1:3::1]:1"));
    }

    #[tokio::test]
    async fn the_address_with_most_places_loses_its_oldest_to_whoever_comes() {
        let places = Places::new(4);
        let crowd: Vec<Place> = (0..3).map(|_| places.take(v4(1)).unwrap()).collect();
        let other = places.take(v4(2)).unwrap();
        let lost = |place: &Place| place.lost.is_cancelled();
        let newcomer = places.take(v4(3)).unwrap();
        assert!(lost(&crowd[0]) && !lost(&crowd[1]) && !lost(&other) && !lost(&newcomer));
        // From the crowd's own address, too, the newest stays: it is the one that may be going on.
        let own = places.take(v4(1)).unwrap();
        assert!(lost(&crowd[1]) && !lost(&crowd[2]) && !lost(&own));
        assert_eq!(places.count(), 4);
        assert_eq!(crowd[1].while_kept(std::future::pending::<()>()).await, None);
        assert_eq!(own.while_kept(async { 7 }).await, Some(7));
        drop((crowd, other, newcomer, own));
        assert_eq!((places.count(), places.taken().waiting.len()), (0, 0));
    }

    #[test]
    fn a_place_that_is_kept_is_taken_from_nobody() {
        let places = Places::new(2);
        let mut first = places.take(v4(1)).unwrap();
        let mut second = places.take(v4(1)).unwrap();
        assert!(first.keep() && first.keep());
        let third = places.take(v4(2)).unwrap();
        assert!(!second.keep(), "it was lost to the newcomer");
        drop(second);
        assert_eq!(places.count(), 2);
        drop(third);
        let mut fourth = places.take(v4(2)).unwrap();
        assert!(fourth.keep() && places.take(v4(3)).is_none());
        drop((first, fourth));
        assert_eq!(places.count(), 0);
    }

    #[test]
    fn an_address_begins_so_many_handshakes_and_a_forged_one_uses_up_half_of_them() {
        let (rates, begin) = (Rates::default(), Instant::now());
        let half = (BURST / 2.0) as usize;
        let turns = |proven, count| (0..count).map(|_| rates.begin(v4(1), proven, begin)).collect::<Vec<_>>();
        assert!(turns(false, half + 1).iter().all(|turn| *turn == Turn::Begin));
        assert_eq!(turns(false, 3), [Turn::Prove; 3]);
        assert!(turns(true, half - 1).iter().all(|turn| *turn == Turn::Begin));
        assert_eq!(turns(true, 2), [Turn::Refuse; 2]);
        assert_eq!(rates.begin(v4(2), true, begin), Turn::Begin, "another address is another count");
        rates.end_well(v4(1));
        assert_eq!(turns(true, 2), [Turn::Begin, Turn::Refuse]);
        let later = begin + Duration::from_secs(1);
        assert_eq!(rates.begin(v4(1), true, later), Turn::Begin);
    }

    #[test]
    fn addresses_without_end_take_bounded_memory() {
        let (rates, now) = (Rates::default(), Instant::now());
        for number in 0..20_000u32 {
            rates.begin(Origin::V4(number), true, now);
        }
        assert!(rates.0.lock().unwrap().len() <= KNOWN_MAX + 1);
        // Those who are known have a count of their own still, and with time there is room again.
        assert_eq!(rates.begin(Origin::V4(1), true, now), Turn::Begin);
        rates.begin(Origin::V4(30_000), true, now + Duration::from_secs(60));
        assert_eq!(rates.0.lock().unwrap().len(), 1);
    }

    #[test]
    fn of_many_lines_one_a_second_is_written_and_says_how_many_were_not() {
        let (lines, begin) = (Lines::default(), Instant::now());
        assert_eq!(lines.next(begin).as_deref(), Some(""));
        assert!((0..50).all(|_| lines.next(begin).is_none()));
        let later = lines.next(begin + LINE_EVERY);
        assert_eq!(later.as_deref(), Some(" (and 50 more since the last line)"));
    }
}
