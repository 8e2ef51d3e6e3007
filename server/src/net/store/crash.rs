//! Instants at which a test lets the server die, without a handler or a flush: between any two steps that a crash could come
//! between. Built into test builds only; a shipped server has no such point.

/// Dies here if the environment says so: `CONSORTIA_CRASH=name:n` means the n-th time that this point is passed.
#[cfg(feature = "crash-points")]
pub(crate) fn point(name: &str) {
    use std::sync::Mutex;
    static LEFT: Mutex<Option<u32>> = Mutex::new(None);
    let Ok(wanted) = std::env::var("CONSORTIA_CRASH") else { return };
    let Some((point, times)) = wanted.split_once(':') else { return };
    if point != name {
        return;
    }
    let mut left = LEFT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let now = left.unwrap_or_else(|| times.parse().unwrap_or(1)) - 1;
    *left = Some(now);
    if now == 0 {
        std::process::abort();
    }
}

/// Nothing: this build cannot be told to die.
#[cfg(not(feature = "crash-points"))]
pub(crate) fn point(_: &str) {}
