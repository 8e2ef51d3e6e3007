//! Answers that were computed, until their run goes on. When the server puts the same task again, after a lost line or a restart of either
//! side, the same bytes go out: nothing is trained, charged or noised a second time. A receipt does not end that: the server has the answer in
//! memory then, and loses it with the round when it falls over before the round is committed.
//!
//! An answer is the answer to one question: the run, round and step, and a digest of all that the task says. A server that puts
//! another question under the same name gets none of it. What was kept is bound to the ledger as it was then, so that a ledger from a
//! backup, which does not hold the charge, sends nothing for free. The number of an attempt is no part of the question.
//!
//! To send the same bytes again tells the server nothing that it could not have had the first time, also under secret sampling and
//! noise of the site's own; noise that was drawn anew for the same update would have told more.
//!
//! Where the site has a folder for them, answers are files there, readable by their owner alone and written before the first byte leaves; else
//! they are held in memory, until they are acknowledged. They are not synced: what a loss of power damages is found by its checksum and thrown away, and then the task is done,
//! and charged, once more. There is one answer a run, and all of them together have a bound.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use privacy::chain::Digest;
use protocol::wire::{AnswerHeader, FRAME_HEAD, FrameHead, FrameKind, SMALL_MAX, TaskHeader, decode, encode};
use protocol::{Round, RunId, StepId, Task, TaskId, Values, Work};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::records::private;
use super::values::bytes_of;
use crate::LedgerHead;

/// The version of the files.
const VERSION: u32 = 1;
/// Answers that are kept at most: of so many runs.
const ANSWERS_MAX: usize = 8;
/// Bytes of all answers that are kept at most. What would not fit beside nothing else is not kept.
const BYTES_MAX: u64 = 1 << 30;
/// The most bytes of a file's first line.
const LABEL_MAX: usize = 4 * 1024;
/// How the files' names end.
const EXTENSION: &str = "answer";
/// Bytes of the checksum at the end of a file.
const SUM: usize = 32;

/// An answer as it leaves.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Packed {
    pub(super) header: AnswerHeader,
    /// The values behind it.
    pub(super) values: Vec<Bytes>,
}

impl Packed {
    fn len(&self) -> u64 {
        self.values.iter().map(|values| values.len() as u64).sum()
    }
}

/// What an answer answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Question {
    run: RunId,
    round: Round,
    step: StepId,
    /// Of all that the task says, but for the number of its attempt.
    content: Digest,
}

impl Question {
    /// The question that a task puts.
    pub(super) fn of(task: &Task) -> Self {
        let TaskId { run, round, step, .. } = task.id;
        let mut header = TaskHeader::of(task, &task.spec.to_json());
        header.id.attempt = 0;
        let mut content = Sha256::new();
        content.update(encode(FrameKind::Task, &header));
        if let Some(model) = task.work.model() {
            content.update(bytemuck::cast_slice::<f32, u8>(model.values()));
        }
        if let Work::Method(work) = &task.work {
            work.blocks.iter().for_each(|block| content.update(raw(&block.values)));
        }
        Self { run, round, step, content: Digest::of(&content.finalize()) }
    }

    fn is_of(&self, task: TaskId) -> bool {
        (self.run, self.round, self.step) == (task.run, task.round, task.step)
    }
}

fn raw(values: &Values) -> Vec<u8> {
    values.to_le_bytes()
}

/// What stands in a file's first line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Label {
    version: u32,
    question: Question,
    /// Where the site's ledger ended when the answer had been paid for.
    ledger: Option<LedgerHead>,
    /// Bytes of the header's frame, and of each vector of values.
    header: usize,
    values: Vec<usize>,
}

/// Why what was kept is not sent. For the site's eyes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    /// The task is another one.
    #[error("it answers another task of the same name")]
    Stale,
    /// The ledger is another one, or an older state of it.
    #[error("the ledger here does not hold its charge")]
    Ledger,
    /// It would be counted twice.
    #[error(
        "the server is of an earlier release, which would count it as an update that this site's ledger lacks"
    )]
    Earlier,
    /// The file cannot be read.
    #[error("{path}: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// Where an answer is.
#[derive(Debug)]
enum Place {
    Memory(Box<(Label, Packed)>),
    File(PathBuf),
}

#[derive(Debug)]
struct Kept {
    /// The round and step that it answers; `None` in a file of an earlier life that nobody has asked for yet.
    step: Option<(Round, StepId)>,
    place: Place,
    bytes: u64,
    /// Counts up: the oldest goes first.
    serial: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Outbox {
    folder: Option<PathBuf>,
    kept: BTreeMap<RunId, Kept>,
    serial: u64,
}

impl Outbox {
    /// The outbox in `folder`, which is made where it is missing. What an earlier life of the site's program has left there is kept.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        #[cfg(unix)]
        fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        let mut found = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let (path, data) = (entry.path(), entry.metadata()?);
            let run = path.file_stem().and_then(|stem| stem.to_str()?.parse::<RunId>().ok());
            match run.filter(|_| path.extension().is_some_and(|extension| extension == EXTENSION)) {
                Some(run) if data.is_file() => found.push((data.modified()?, run, path, data.len())),
                // What a crash left half written.
                None if path.extension().is_some_and(|extension| extension == "new") => {
                    fs::remove_file(&path)?;
                }
                _ => {}
            }
        }
        found.sort();
        let mut outbox = Self { folder: Some(folder.to_owned()), ..Self::default() };
        for (_, run, path, bytes) in found {
            outbox.hold(run, None, Place::File(path), bytes);
        }
        Ok(outbox)
    }

    /// The answer to `task`, if it was computed before. `extends` says whether the site's ledger goes on from a head. What is kept of the
    /// task's run and is no answer to it is thrown away; that it was an answer to a task of the same name, and why it is not used, is the error.
    pub(super) fn find(
        &mut self,
        task: &Task,
        extends: impl Fn(Option<LedgerHead>) -> bool,
    ) -> Result<Option<Packed>, Unusable> {
        let run = task.id.run;
        let Some(kept) = self.kept.get(&run) else { return Ok(None) };
        let read = match &kept.place {
            Place::Memory(kept) => Ok((**kept).clone()),
            Place::File(path) => read(path).map_err(|what| Unusable::Damaged { path: path.clone(), what }),
        };
        let found = read.and_then(|(label, packed)| {
            if !label.question.is_of(task.id) {
                // The step is over.
                return Ok(None);
            }
            if label.question != Question::of(task) {
                return Err(Unusable::Stale);
            }
            if extends(label.ledger) { Ok(Some(packed)) } else { Err(Unusable::Ledger) }
        });
        match found {
            Ok(Some(mut packed)) => {
                if let Some(kept) = self.kept.get_mut(&run) {
                    kept.step = Some((task.id.round, task.id.step));
                }
                packed.header.task = task.id;
                Ok(Some(packed))
            }
            nothing => {
                self.forget(run);
                nothing
            }
        }
    }

    /// Keeps the answer to `task`, in the place of what was kept of its run. `ledger` is where the site's ledger ends. It is in its file when this
    /// returns.
    ///
    /// # Errors
    /// When it cannot be written; it is not kept then.
    pub(super) fn keep(
        &mut self,
        task: &Task,
        packed: &Packed,
        ledger: Option<LedgerHead>,
    ) -> io::Result<()> {
        let run = task.id.run;
        self.forget(run);
        if packed.len() > BYTES_MAX {
            return Err(io::Error::other(format!(
                "the answer has {} bytes, and at most {BYTES_MAX} are kept",
                packed.len()
            )));
        }
        let label = Label {
            version: VERSION,
            question: Question::of(task),
            ledger,
            header: encode(FrameKind::Answer, &packed.header).len(),
            values: packed.values.iter().map(Bytes::len).collect(),
        };
        let place = match &self.folder {
            None => Place::Memory(Box::new((label, packed.clone()))),
            Some(folder) => {
                let path = folder.join(format!("{run}.{EXTENSION}"));
                write(&path, &label, packed)?;
                Place::File(path)
            }
        };
        self.hold(run, Some((task.id.round, task.id.step)), place, packed.len());
        Ok(())
    }

    /// The answer to a task was acknowledged. Only a file outlives that.
    pub(super) fn acknowledged(&mut self, task: TaskId) {
        if self.kept.get(&task.run).is_some_and(|kept| matches!(kept.place, Place::Memory(_))) {
            self.forget_task(task);
        }
    }

    /// Throws away what is kept of a task's step: nobody wants it.
    pub(super) fn forget_task(&mut self, task: TaskId) {
        // The receipt of a task may come after the run's next one has been done.
        if self.kept.get(&task.run).is_some_and(|kept| kept.step == Some((task.round, task.step))) {
            self.forget(task.run);
        }
    }

    fn forget(&mut self, run: RunId) {
        if let Some(Kept { place: Place::File(path), .. }) = self.kept.remove(&run)
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::warn!("{}: {error}; an answer that is of no use stays there", path.display());
        }
    }

    fn hold(&mut self, run: RunId, step: Option<(Round, StepId)>, place: Place, bytes: u64) {
        self.serial += 1;
        self.kept.insert(run, Kept { step, place, bytes, serial: self.serial });
        let all = |kept: &BTreeMap<RunId, Kept>| kept.values().map(|kept| kept.bytes).sum::<u64>();
        while self.kept.len() > ANSWERS_MAX || (self.kept.len() > 1 && all(&self.kept) > BYTES_MAX) {
            let oldest = self.kept.iter().min_by_key(|(_, kept)| kept.serial).map(|(run, _)| *run);
            oldest.into_iter().for_each(|run| self.forget(run));
        }
    }
}

/// Writes beside and renames, so that a crash leaves a whole file or none.
fn write(path: &Path, label: &Label, packed: &Packed) -> io::Result<()> {
    let beside = path.with_extension("new");
    let (mut file, mut sum) =
        (private().create(true).truncate(true).write(true).open(&beside)?, Sha256::new());
    let mut put = |bytes: &[u8]| {
        sum.update(bytes);
        file.write_all(bytes)
    };
    let mut line = serde_json::to_vec(label)?;
    line.push(b'\n');
    put(&line)?;
    put(&encode(FrameKind::Answer, &packed.header))?;
    packed.values.iter().try_for_each(|values| put(values))?;
    file.write_all(&sum.finalize())?;
    fs::rename(beside, path)
}

fn read(path: &Path) -> Result<(Label, Packed), String> {
    let bytes = Bytes::from(fs::read(path).map_err(|error| error.to_string())?);
    let whole = bytes.len().checked_sub(SUM).ok_or("the file is cut off")?;
    if Sha256::digest(&bytes[..whole])[..] != bytes[whole..] {
        return Err("its checksum does not fit".to_owned());
    }
    let end = bytes[..whole.min(LABEL_MAX)].iter().position(|byte| *byte == b'\n');
    let end = end.ok_or("it has no first line")?;
    let label: Label = serde_json::from_slice(&bytes[..end]).map_err(|error| error.to_string())?;
    if label.version != VERSION {
        return Err(format!("it is of version {}, and this program reads version {VERSION}", label.version));
    }
    let mut rest = bytes.slice(end + 1..whole);
    let mut take =
        |len: usize| if len <= rest.len() { Ok(rest.split_to(len)) } else { Err("it is too short") };
    let frame = take(label.header)?;
    let (head, body) = frame.split_first_chunk::<FRAME_HEAD>().ok_or("it has no header")?;
    FrameHead::parse(*head, FrameKind::Answer, SMALL_MAX).map_err(|error| error.to_string())?;
    let header = decode(body).map_err(|error| error.to_string())?;
    let values = label.values.iter().map(|len| take(*len)).collect::<Result<_, _>>()?;
    Ok((label, Packed { header, values }))
}

/// An answer in the bytes in which it leaves.
pub(super) fn packed(header: AnswerHeader, payload: protocol::wire::Payload) -> Packed {
    Packed { header, values: payload.into_iter().map(bytes_of).collect() }
}

#[cfg(test)]
mod tests;
