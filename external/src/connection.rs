//! One learner after the other: started or waited for, asked, and ended.

use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use protocol::Stop;

use crate::attach::Attachment;
use crate::channel::{Channel, ChannelError, Incoming, Patience, Stream, Wait};
use crate::error::{ExternalError, broken, rubbish};
use crate::frames::{ClientPlace, DETAILS_MAX, FromLearner, Outcome, SOFTWARE_MAX, ToLearner, VERSION};
use crate::launch::Process;
use crate::model::one_line;
use crate::settings::LearnerSettings;

/// How often a wait looks whether it is still wanted.
const TICK: Duration = Duration::from_millis(20);
/// The longest pause before a learner that failed is started again.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// The longest pause that a task waits for; it is declined during a longer one, where it may be declined.
const PATIENCE: Duration = Duration::from_secs(4);
/// Bytes of a body, at most, as a learner is told; what is taken is exactly what is due.
const BODY_MAX: u64 = 8 << 30;
/// Bytes of a body that is passed over, at most, where a smaller one is due.
const SPARE: u64 = 1 << 20;

/// The learner of a site or of one worker of a simulation.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) settings: LearnerSettings,
    pub(crate) client: ClientPlace,
    folder: PathBuf,
    attachment: Option<Attachment>,
    live: Option<Live>,
    last_id: u64,
    failures: u32,
    /// When it may be started again.
    resume: Option<Instant>,
    /// Whether a task waits for a while, instead of being declined at once, where the learner may not be started again yet.
    pub(crate) waits_out_pauses: bool,
    /// Whether its owner is to end, and waits for nothing any more.
    pub(crate) ending: Stop,
}

/// A learner that has greeted.
#[derive(Debug)]
struct Live {
    channel: Channel,
    process: Option<Process>,
    /// Whether it knows the model.
    is_ready: bool,
    /// Whether it has answered a request.
    has_answered: bool,
}

/// The values that go with a request: what is sent, and where those of its answer go.
#[derive(Debug)]
pub(crate) enum Body<'a> {
    None,
    Sent(&'a [f32]),
    Taken(&'a mut [f32]),
    /// The answer's take the place of those that were sent.
    Exchanged(&'a mut [f32]),
}

impl Body<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Sent(values) => values.len(),
            Self::Taken(values) | Self::Exchanged(values) => values.len(),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a shell: it waits for another program")]
fn now() -> Instant {
    Instant::now()
}

impl Connection {
    pub(crate) fn new(settings: LearnerSettings, folder: PathBuf, client: ClientPlace) -> Self {
        let (attachment, live, resume) = (None, None, None);
        let (waits_out_pauses, ending) = (false, Stop::default());
        let (last_id, failures) = (0, 0);
        Self {
            settings,
            client,
            folder,
            attachment,
            live,
            last_id,
            failures,
            resume,
            waits_out_pauses,
            ending,
        }
    }

    /// Whether the learner that is connected knows the model.
    pub(crate) fn is_ready(&self) -> bool {
        self.live.as_ref().is_some_and(|live| live.is_ready)
    }

    pub(crate) fn set_ready(&mut self, is_ready: bool) {
        if let Some(live) = &mut self.live {
            live.is_ready = is_ready;
        }
    }

    pub(crate) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Ends the learner: it is asked to, and one that was launched is killed when it does not.
    pub(crate) fn end(&mut self) {
        let Some(mut live) = self.live.take() else { return };
        let stop = Stop::default();
        let mut wait = Wait::new(self.patience(Some(self.settings.end())), &stop, None);
        let _ = live.channel.send(&ToLearner::End, &[], &mut wait);
        if let Some(process) = live.process {
            let _ = process.end(self.settings.end(), &self.ending);
        }
    }

    fn patience(&self, whole: Option<Duration>) -> Patience {
        let (silent, stopped) = (self.settings.silent(), self.settings.end());
        Patience { silent, whole, stopped, ending: self.ending.clone() }
    }

    /// A learner that has greeted, the one that is there or a new one.
    pub(crate) fn connected(&mut self, stop: &Stop) -> Result<(), ExternalError> {
        if self.live.is_some() {
            return Ok(());
        }
        if let Some(wait) = self.resume.map(|resume| resume.saturating_duration_since(now())) {
            let paused = ExternalError::Pausing { failures: self.failures, wait };
            if wait > PATIENCE && !self.waits_out_pauses {
                return Err(paused);
            }
            let (began, patience) = (now(), wait.min(PATIENCE));
            while began.elapsed() < patience {
                self.check_wanted(stop)?;
                std::thread::sleep(TICK.min(patience));
            }
            // A longer wait could miss the round, which a server sees.
            if wait > PATIENCE {
                return Err(paused);
            }
        }
        let live = if self.settings.attach { self.attached(stop) } else { self.launched(stop) };
        self.live = Some(live.inspect_err(|error| self.note_failure(error))?);
        Ok(())
    }

    fn check_wanted(&self, stop: &Stop) -> Result<(), ExternalError> {
        match stop.is_stopped() || self.ending.is_stopped() {
            true => Err(ExternalError::Stopped),
            false => Ok(()),
        }
    }

    fn launched(&self, stop: &Stop) -> Result<Live, ExternalError> {
        let started = Process::start(&self.settings, &self.folder, &self.client.name);
        let (process, stream) = started.map_err(|source| ExternalError::Start {
            command: self.settings.command.join(" "),
            folder: self.folder.clone(),
            source,
        })?;
        let greeted = Channel::new(Stream::Unix(stream))
            .map_err(ChannelError::from)
            .map_err(broken)
            .and_then(|mut channel| self.greeted(&mut channel, None, stop).map(|()| channel));
        match greeted {
            Ok(channel) => Ok(Live { channel, process: Some(process), is_ready: false, has_answered: false }),
            Err(ExternalError::Broken { fault, .. }) => Err(self.with_exit(fault, false, Some(process))),
            Err(error) => Err(error),
        }
    }

    fn attached(&mut self, stop: &Stop) -> Result<Live, ExternalError> {
        let mut attachment = match self.attachment.take() {
            Some(attachment) => attachment,
            None => Attachment::open(&self.folder)?,
        };
        let found = self.first_admitted(&mut attachment, stop);
        self.attachment = Some(attachment);
        found.map(|channel| Live { channel, process: None, is_ready: false, has_answered: false })
    }

    /// The first learner that attaches with the token.
    fn first_admitted(&self, attachment: &mut Attachment, stop: &Stop) -> Result<Channel, ExternalError> {
        let (began, waited) = (now(), self.settings.start());
        while began.elapsed() < waited {
            self.check_wanted(stop)?;
            let Some(stream) = attachment.accept().map_err(ChannelError::from).map_err(broken)? else {
                std::thread::sleep(TICK);
                continue;
            };
            let mut channel = Channel::new(stream).map_err(ChannelError::from).map_err(broken)?;
            match self.greeted(&mut channel, Some(attachment), stop) {
                Ok(()) => {
                    attachment.renew()?;
                    return Ok(channel);
                }
                Err(error) => tracing::warn!(target: "learner", learner = %self.client.name, "{error}"),
            }
        }
        Err(ExternalError::Nobody { waited, file: attachment.file().to_owned() })
    }

    /// Hears the learner's greeting and answers it.
    fn greeted(
        &self,
        channel: &mut Channel,
        attachment: Option<&Attachment>,
        stop: &Stop,
    ) -> Result<(), ExternalError> {
        let start = self.settings.start();
        let patience =
            Patience { silent: start, whole: Some(start), stopped: start, ending: self.ending.clone() };
        let mut wait = Wait::new(patience, stop, None);
        let Incoming { frame, body } = channel.receive(0, &mut wait).map_err(broken)?;
        let FromLearner::Hello { versions, software, token } = frame else {
            return Err(rubbish("its first frame is no `hello`"));
        };
        channel.skip(body, &mut wait).map_err(broken)?;
        let mut refuse = |reason: &str| {
            let _ = channel.send(&ToLearner::Refused { reason }, &[], &mut wait);
        };
        if attachment.is_some_and(|attachment| !attachment.admits(token.as_deref())) {
            refuse(
                "the token is not the one of the file that CONSORTIA_LEARNER names; each is good for one connection, so read the file again",
            );
            return Err(rubbish("a program attached with a wrong token"));
        }
        if !versions.contains(&VERSION) {
            refuse(&format!(
                "this agent speaks version {VERSION} of the channel; install the package of its release"
            ));
            return Err(ExternalError::Version(versions));
        }
        let software: String =
            software.chars().filter(|letter| !letter.is_control()).take(SOFTWARE_MAX).collect();
        tracing::info!(target: "learner", learner = %self.client.name, software, "a learner is connected");
        let silent_seconds = self.settings.silent_seconds;
        let welcome = ToLearner::Welcome {
            version: VERSION,
            software: concat!("consortia ", env!("CARGO_PKG_VERSION")),
            alive_seconds: (silent_seconds / 4).clamp(1, 5),
            silent_seconds,
            body_max: BODY_MAX,
        };
        channel.send(&welcome, &[], &mut wait).map_err(broken)
    }

    /// Whatever a learner did that ends its connection makes the next one wait, longer each time.
    pub(crate) fn note_failure(&mut self, error: &ExternalError) {
        if matches!(error, ExternalError::Stopped | ExternalError::Pausing { .. }) {
            return;
        }
        let pause = Duration::from_secs(1 << self.failures.min(6)).min(PAUSE_MAX);
        self.failures += 1;
        self.resume = Some(now() + pause);
    }

    /// Sends a request and takes its answer. Bodies hold the values at `order`, one range behind the other; an answer of another length is
    /// not taken.
    pub(crate) fn ask(
        &mut self,
        (id, frame): (u64, &ToLearner<'_>),
        body: Body<'_>,
        order: &[Range<usize>],
        limit: Option<Duration>,
        stop: &Stop,
    ) -> Result<Outcome, ExternalError> {
        let patience = self.patience(limit);
        let Some(live) = &mut self.live else { return Err(rubbish("there is no connection")) };
        let (mut wait, mut is_heard) = (Wait::new(patience, stop, Some(id)), false);
        let asked = exchange(&mut live.channel, (id, frame), body, order, &mut wait, &mut is_heard);
        match asked {
            Err(ExternalError::Broken { fault, .. }) => {
                let is_gone = matches!(fault, ChannelError::Closed);
                let is_unheard = is_gone && live.has_answered && !is_heard;
                let process = self.live.take().and_then(|live| live.process);
                let error = self.with_exit(fault, is_unheard, process);
                // Whoever ends between two requests has failed in neither.
                if !is_unheard {
                    self.note_failure(&error);
                }
                Err(error)
            }
            _ if wait.is_stopped() => Err(ExternalError::Stopped),
            asked => {
                live.has_answered = true;
                // One that dies in every task has agreed on the model before each.
                if !matches!(frame, ToLearner::Prepare { .. }) {
                    (self.failures, self.resume) = (0, None);
                }
                asked
            }
        }
    }

    /// The error of a broken connection, with how the process ended and what it printed last.
    fn with_exit(&self, fault: ChannelError, is_unheard: bool, process: Option<Process>) -> ExternalError {
        let exit = match process.map(|process| process.end(self.settings.end(), &self.ending)) {
            Some(Ok((status, printed))) if printed.is_empty() => format!(" ({status}); it printed nothing"),
            Some(Ok((status, printed))) => format!(" ({status}); the last that it printed:\n{printed}"),
            Some(Err(_)) | None => String::new(),
        };
        ExternalError::Broken { fault, exit, is_unheard }
    }

    /// Says whether an answer was taken. A learner that is gone by now is found by the next request.
    pub(crate) fn acknowledge(&mut self, id: u64, refused: Option<&ExternalError>) {
        let (patience, stop) = (self.patience(None), Stop::default());
        let Some(live) = &mut self.live else { return };
        let reason = refused.map(ToString::to_string);
        let frame = match &reason {
            Some(reason) => ToLearner::Rejected { id, reason },
            None => ToLearner::Acknowledged { id },
        };
        if live.channel.send(&frame, &[], &mut Wait::new(patience, &stop, None)).is_err() {
            self.live = None;
        }
    }
}

/// One request and its answer.
fn exchange(
    channel: &mut Channel,
    (id, frame): (u64, &ToLearner<'_>),
    mut body: Body<'_>,
    order: &[Range<usize>],
    wait: &mut Wait<'_>,
    is_heard: &mut bool,
) -> Result<Outcome, ExternalError> {
    let sent: &[f32] = match &body {
        Body::Sent(values) => values,
        Body::Exchanged(values) => values,
        Body::None | Body::Taken(_) => &[],
    };
    let ranges = if sent.is_empty() { &[] } else { order };
    let parts: Vec<&[f32]> = ranges.iter().map(|range| &sent[range.clone()]).collect();
    channel.send(frame, &parts, wait).map_err(broken)?;
    let mut into = match &mut body {
        Body::Taken(values) | Body::Exchanged(values) => parts_mut(values, order),
        Body::None | Body::Sent(_) => Vec::new(),
    };
    let due: u64 = into.iter().map(|part| size_of_val(&**part) as u64).sum();
    let most = due.saturating_mul(2).saturating_add(SPARE);
    loop {
        let Incoming { frame, body } = channel.receive(most, wait).map_err(broken)?;
        *is_heard = true;
        match frame {
            FromLearner::Accepted { id: of } if of == id => channel.skip(body, wait).map_err(broken)?,
            FromLearner::Failed { id: of, error, details } if of == id => {
                channel.skip(body, wait).map_err(broken)?;
                return Err(ExternalError::Script { error: one_line(&error), details: shown(&details) });
            }
            FromLearner::Result(outcome) if outcome.id == id => {
                if body != due || wait.is_stopped() {
                    channel.skip(body, wait).map_err(broken)?;
                    let what = format!("it has {body} bytes of values where {due} are due");
                    return Err(ExternalError::Answer(what));
                }
                into.iter_mut().try_for_each(|part| channel.read_values(part, wait)).map_err(broken)?;
                return Ok(outcome);
            }
            other => return Err(rubbish(&format!("a `{}` while request {id} is open", other.kind()))),
        }
    }
}

/// A traceback for the log, on lines of its own.
fn shown(details: &str) -> String {
    let mut end = details.len().min(DETAILS_MAX);
    while !details.is_char_boundary(end) {
        end -= 1;
    }
    // Lines, and no other control characters: a log is read in terminals.
    let mut text = String::new();
    for letter in details[..end].trim_end().chars() {
        match letter {
            '\n' | '\t' => text.push(letter),
            other if other.is_control() => text.extend(other.escape_debug()),
            other => text.push(other),
        }
    }
    if text.is_empty() { text } else { format!("\n{text}") }
}

/// The parts of a vector in another order, to be written.
fn parts_mut<'a>(mut vector: &'a mut [f32], order: &[Range<usize>]) -> Vec<&'a mut [f32]> {
    let mut sorted: Vec<usize> = (0..order.len()).collect();
    sorted.sort_by_key(|at| order[*at].start);
    let (mut taken, mut parts) = (0, Vec::with_capacity(order.len()));
    for at in sorted {
        let Range { start, end } = order[at];
        let (_, rest) = vector.split_at_mut(start - taken);
        let (part, rest) = rest.split_at_mut(end - start);
        parts.push((at, part));
        (vector, taken) = (rest, end);
    }
    parts.sort_by_key(|(at, _)| *at);
    parts.into_iter().map(|(_, part)| part).collect()
}
