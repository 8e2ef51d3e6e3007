//! Frames over a stream, with patience that ends: a learner that is silent, stops reading or writes rubbish holds nobody up.

use std::borrow::Cow;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use protocol::Stop;

use crate::frames::{FromLearner, HEAD, HEADER_MAX, ToLearner};

/// How often a wait looks whether it is still wanted.
const TICK: Duration = Duration::from_millis(50);
/// How long a learner is waited for, at most, once its site is to end, which has seconds for all that it does then.
pub(crate) const HURRY: Duration = Duration::from_secs(1);

/// Why a learner can no longer be spoken with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// It is gone.
    #[error("the learner closed its connection")]
    Closed,
    /// It was not heard.
    #[error("the learner was silent for {} s", .0.as_secs())]
    Silent(Duration),
    /// It takes too long.
    #[error("the learner worked for more than {} s (`task_seconds`)", .0.as_secs())]
    Late(Duration),
    /// It was told to stop, and did not.
    #[error("the learner went on for {} s after it was told to stop", .0.as_secs())]
    Stubborn(Duration),
    /// Nobody waits for it any more.
    #[error("the learner was not waited for, since this program is to end")]
    Ending,
    /// Bytes that are no frame, or one that makes no sense here.
    #[error("the learner broke the rules of the channel (docs/learner.md): {0}")]
    Rubbish(String),
    /// The system.
    #[error("the learner's connection failed: {0}")]
    Io(#[from] io::Error),
}

/// Either end of a connection.
#[derive(Debug)]
pub(crate) enum Stream {
    #[cfg(unix)]
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// Makes reads and writes come back at least every [`TICK`].
    fn prepare(&self) -> io::Result<()> {
        match self {
            #[cfg(unix)]
            Self::Unix(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(TICK))?;
                stream.set_write_timeout(Some(TICK))
            }
            Self::Tcp(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(TICK))?;
                stream.set_write_timeout(Some(TICK))
            }
        }
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            #[cfg(unix)]
            Self::Unix(stream) => stream.read(into),
            Self::Tcp(stream) => stream.read(into),
        }
    }

    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            #[cfg(unix)]
            Self::Unix(stream) => stream.write(from),
            Self::Tcp(stream) => stream.write(from),
        }
    }
}

/// How long to wait for a learner.
#[derive(Clone, Debug)]
pub(crate) struct Patience {
    /// Without a byte from it, or without it taking one.
    pub(crate) silent: Duration,
    /// For the whole answer; `None` without a limit.
    pub(crate) whole: Option<Duration>,
    /// For an answer that is no longer wanted.
    pub(crate) stopped: Duration,
    /// Whether whoever waits is to end.
    pub(crate) ending: Stop,
}

/// A wait that is under way.
pub(crate) struct Wait<'a> {
    patience: Patience,
    stop: &'a Stop,
    /// The request that a stop is about.
    id: Option<u64>,
    began: Instant,
    /// When the learner was last heard, or last took a byte.
    heard: Instant,
    /// When it was told to stop.
    told: Option<Instant>,
}

#[expect(clippy::disallowed_methods, reason = "a shell: it waits for another program")]
fn now() -> Instant {
    Instant::now()
}

impl<'a> Wait<'a> {
    pub(crate) fn new(patience: Patience, stop: &'a Stop, id: Option<u64>) -> Self {
        let now = now();
        Self { patience, stop, id, began: now, heard: now, told: None }
    }

    fn hear(&mut self) {
        self.heard = now();
    }

    /// Whether the learner was told to stop.
    pub(crate) fn is_stopped(&self) -> bool {
        self.told.is_some()
    }

    /// An error when the wait is over.
    fn check(&self) -> Result<(), ChannelError> {
        let Patience { silent, whole, mut stopped, ref ending } = self.patience;
        let now = now();
        if ending.is_stopped() {
            if self.id.is_none() {
                return Err(ChannelError::Ending);
            }
            stopped = stopped.min(HURRY);
        }
        if now.duration_since(self.heard) > silent {
            return Err(ChannelError::Silent(silent));
        }
        if let Some(whole) = whole.filter(|whole| now.duration_since(self.began) > *whole) {
            return Err(ChannelError::Late(whole));
        }
        match self.told {
            Some(told) if now.duration_since(told) > stopped => Err(ChannelError::Stubborn(stopped)),
            _ => Ok(()),
        }
    }

    /// What a stop makes due, once.
    fn due(&mut self) -> Option<ToLearner<'static>> {
        let id = self.id.filter(|_| self.told.is_none())?;
        if !self.stop.is_stopped() && !self.patience.ending.is_stopped() {
            return None;
        }
        self.told = Some(now());
        Some(ToLearner::Stop { id })
    }
}

/// Values as they travel.
fn little_endian(values: &[f32]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        return bytemuck::cast_slice(values).into();
    }
    values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>().into()
}

/// Whether a read or write came back because of its time limit, or a signal.
fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn of(error: io::Error) -> ChannelError {
    match error.kind() {
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof => ChannelError::Closed,
        _ => ChannelError::Io(error),
    }
}

/// A connection with a learner.
#[derive(Debug)]
pub(crate) struct Channel {
    stream: Stream,
}

/// A frame of which the body is not read yet.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) frame: FromLearner,
    /// Bytes of the body: all of them must be read or passed over before the next frame.
    pub(crate) body: u64,
}

impl Channel {
    pub(crate) fn new(stream: Stream) -> io::Result<Self> {
        stream.prepare()?;
        Ok(Self { stream })
    }

    /// Sends a frame whose body is `parts`, one behind the other.
    pub(crate) fn send(
        &mut self,
        frame: &ToLearner<'_>,
        parts: &[&[f32]],
        wait: &mut Wait<'_>,
    ) -> Result<(), ChannelError> {
        let header = serde_json::to_vec(frame).map_err(io::Error::from)?;
        if header.len() > HEADER_MAX {
            let bytes = header.len();
            return Err(
                io::Error::other(format!("a header of {bytes} bytes; at most {HEADER_MAX} fit")).into()
            );
        }
        let body: u64 = parts.iter().map(|part| size_of_val(*part) as u64).sum();
        let mut start = Vec::with_capacity(HEAD + header.len());
        start.extend((header.len() as u32).to_le_bytes());
        start.extend(body.to_le_bytes());
        start.extend(header);
        self.write(&start, wait)?;
        parts.iter().try_for_each(|part| self.write(&little_endian(part), wait))
    }

    fn write(&mut self, mut bytes: &[u8], wait: &mut Wait<'_>) -> Result<(), ChannelError> {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(0) => return Err(ChannelError::Closed),
                Ok(taken) => {
                    bytes = &bytes[taken..];
                    wait.hear();
                }
                // That it is to stop cannot be said in the middle of a frame; the read behind it does.
                Err(error) if is_pause(&error) => wait.check()?,
                Err(error) => return Err(of(error)),
            }
        }
        Ok(())
    }

    /// The next frame that this code understands, with a body of at most `body_max` bytes.
    pub(crate) fn receive(&mut self, body_max: u64, wait: &mut Wait<'_>) -> Result<Incoming, ChannelError> {
        loop {
            let mut head = [0; HEAD];
            self.read(&mut head, wait)?;
            let [a, b, c, d, body @ ..] = head;
            let (header, body) = (u32::from_le_bytes([a, b, c, d]) as usize, u64::from_le_bytes(body));
            if !(2..=HEADER_MAX).contains(&header) {
                return Err(ChannelError::Rubbish(format!(
                    "a frame says that its header has {header} bytes; 2 to {HEADER_MAX} are allowed. Does the learner print into the channel?"
                )));
            }
            if body > body_max {
                let most = body_max;
                return Err(ChannelError::Rubbish(format!(
                    "a body of {body} bytes; at most {most} are expected"
                )));
            }
            let mut text = vec![0; header];
            self.read(&mut text, wait)?;
            let frame = serde_json::from_slice(&text).map_err(|error| {
                let start: String = String::from_utf8_lossy(&text).chars().take(80).collect();
                ChannelError::Rubbish(format!("a header that is not understood ({error}): {start:?}"))
            })?;
            if matches!(frame, FromLearner::Alive | FromLearner::Unknown) {
                self.skip(body, wait)?;
                continue;
            }
            return Ok(Incoming { frame, body });
        }
    }

    /// Reads a body's next values.
    pub(crate) fn read_values(&mut self, into: &mut [f32], wait: &mut Wait<'_>) -> Result<(), ChannelError> {
        self.read(bytemuck::cast_slice_mut(into), wait)?;
        if cfg!(target_endian = "big") {
            into.iter_mut().for_each(|value| *value = f32::from_bits(value.to_bits().swap_bytes()));
        }
        Ok(())
    }

    /// Passes over bytes of a body.
    pub(crate) fn skip(&mut self, mut bytes: u64, wait: &mut Wait<'_>) -> Result<(), ChannelError> {
        let mut buffer = vec![0; 1 << 16];
        while bytes > 0 {
            let next = usize::try_from(bytes).map_or(buffer.len(), |left| left.min(buffer.len()));
            self.read(&mut buffer[..next], wait)?;
            bytes -= next as u64;
        }
        Ok(())
    }

    fn read(&mut self, mut into: &mut [u8], wait: &mut Wait<'_>) -> Result<(), ChannelError> {
        while !into.is_empty() {
            match self.stream.read(into) {
                Ok(0) => return Err(ChannelError::Closed),
                Ok(read) => {
                    into = &mut into[read..];
                    wait.hear();
                }
                Err(error) if is_pause(&error) => {}
                Err(error) => return Err(of(error)),
            }
            wait.check()?;
            if let Some(frame) = wait.due() {
                self.send(&frame, &[], wait)?;
            }
        }
        Ok(())
    }
}
