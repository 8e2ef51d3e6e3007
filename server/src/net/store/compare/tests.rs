//! A state that was turned back, cut, exchanged or damaged is not worked with; one that a crash left is.
//!
//! `CONSORTIA_THOROUGH=1` makes two hundred damages of each kind to each file instead of a few.

mod segments;

use std::fs;

use privacy::accounting::{Mechanism, Relation};
use privacy::chain::segments::{SegmentBytes, files_of};
use privacy::ledger::{Charge, Composition, Release, Terms, Unit};
use protocol::{ClientId, Time};

use super::super::tests::{RUN, begin, commit, layout, submit};
use super::super::{BackupError, Submission};
use super::*;
use crate::net::store::audit::{AuditLog, Event};
use crate::net::store::messages::Record as Member;
use crate::{Commit, LedgerReservation};

const PLAN: &str = "name = \"hearts\"\nrounds = 9\nmodel = \"logistic\"\n[data.tensor]\nshape = [6]\ntarget = { classes = 2 }\n\
    [training]\nbatch_size = 8\noptimizer = { sgd = { learning_rate = 0.05 } }\n[update]\nnorm_max = 1.0\n[cohort]\nclients_min = 3\n\
    [privacy.central]\npopulation = \"wards\"\ndelta = 1e-5\nepsilon_max = 9\nnoise_multiplier = 20\ndenominator = 3\n\
    sampling = { availability = { participations_max = 100 } }\n";

/// A server of one private run, as far as its books go.
struct Books {
    store: Store,
    ledger: Ledger,
    log: AuditLog,
}

/// The log, in files of the least size.
fn open_log(dir: &Path, store: &Store) -> Result<AuditLog, crate::net::store::audit::AuditError> {
    let segment = SegmentBytes::new(SegmentBytes::MIN).unwrap();
    AuditLog::open(&dir.join("audit.jsonl"), segment, store.cross_check(), Time::ZERO)
}

fn charge() -> Charge {
    let mechanism = Mechanism::Gaussian { noise_multiplier: 20.0 };
    Charge { mechanism, composition: Composition::Each { at_most: None } }
}

/// What a round's commit is, without what it pays.
fn round_of(round: u32) -> Commit {
    let mut done = commit(round, [round as f32 + 0.25; 3]);
    done.checkpoint.releases = round;
    done
}

impl Books {
    async fn found(dir: &Path) -> Self {
        let store = Store::open(dir).await.unwrap();
        let (unit, relation) = (Unit::Client, Relation::ZeroOut);
        let terms = Terms { population: "wards".into(), unit, relation, delta: 1e-5, epsilon_max: 9.0 };
        let (ledger, first) = Ledger::found(terms).unwrap();
        let log = open_log(dir, &store).unwrap();
        let mut books = Self { store, ledger, log };
        books
            .store
            .append_to_ledger(&LedgerReservation { population: "wards".into(), links: vec![first] })
            .await
            .unwrap();
        let (layout, checkpoint) = (layout(), &begin([0.0; 3]));
        let (run, name, plan_toml, layout) = (RUN, "hearts", PLAN, &layout);
        let new =
            Submission { run, name, rounds: 9, plan_toml, seed: None, calibrated: None, layout, checkpoint };
        books.store.submit(&new).await.unwrap();
        let plan_sha256 = Digest::of(PLAN.as_bytes()).to_string();
        let submitted = Event::Submitted { name: "hearts", plan_sha256, is_seeded: false, by: "ada" };
        books.log.write(Time::ZERO, Some(RUN), &submitted).unwrap();
        books.revoke("south", 100).await;
        books
    }

    async fn revoke(&mut self, site: &str, before: u64) {
        let site = ClientId::new(site).unwrap();
        self.store.revoke(&site, before).await.unwrap();
        self.log.member(Time::ZERO, &Member::Revoked { site, before, by: "ada".into() }).unwrap();
    }

    /// What a round stores, and what the log is told of it. `dies`: at the moment between the two.
    async fn release(&mut self, round: u32, dies: bool) -> Result<String, StoreError> {
        let (permit, reserved) = self.ledger.reserve(&RUN.to_string(), round, &charge(), 1).unwrap();
        let population = "wards".to_owned();
        self.store
            .append_to_ledger(&LedgerReservation { population: population.clone(), links: vec![reserved] })
            .await?;
        let mut done = round_of(round);
        let sha256 = done.checkpoint.model.sha256();
        let release = Release { sha256, software: "a test".into(), norm_next: None };
        let (_, spent) = self.ledger.spend(permit, release).unwrap();
        done.reservation = Some(LedgerReservation { population, links: vec![spent] });
        let mut prepared = self.store.prepare(RUN, &layout(), &done).await?;
        let is_new = self.store.write(&mut prepared).await?;
        let written = self.store.written(prepared);
        if is_new && dies {
            return Err(StoreError::LeaseLost { seconds: 0 });
        }
        if is_new {
            self.log.released(Time::ZERO, RUN, round, &written.model_sha256)?;
        }
        self.store.finish(RUN, &written).await?;
        self.store.sweep().await;
        Ok(written.model_sha256)
    }

    async fn close(self) {
        self.store.close().await;
    }
}

/// A folder as a kill would leave it: the files of a state that is still open.
fn image(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    copy_all(from, to.path());
    to
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if from.is_dir() {
            copy_all(&from, &to);
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}

async fn refused(dir: &Path) -> String {
    Store::open(dir).await.expect_err("a state whose books disagree was opened").to_string()
}

#[tokio::test]
async fn an_older_database_beside_a_log_that_knows_more_is_refused_and_can_be_brought_back_charged() {
    let (dir, old) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut books = Books::found(dir.path()).await;
    books.release(1, false).await.unwrap();
    books.close().await;
    fs::copy(dir.path().join("state.sqlite"), old.path().join("state.sqlite")).unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let ledger = Ledger::replay(&store.ledger("wards").await.unwrap()).unwrap();
    let log = open_log(dir.path(), &store).unwrap();
    let mut books = Books { store, ledger, log };
    for round in 2..4 {
        books.release(round, false).await.unwrap();
    }
    books.close().await;
    fs::copy(old.path().join("state.sqlite"), dir.path().join("state.sqlite")).unwrap();
    let blobs = fs::read_dir(dir.path().join("blobs")).unwrap().count();
    let said = refused(dir.path()).await;
    assert!(said.contains("round 2 of run") && said.contains("N is 2"), "{said}");
    assert_eq!(fs::read_dir(dir.path().join("blobs")).unwrap().count(), blobs, "evidence was removed");
    fs::write(dir.path().join("audit.jsonl.forgotten"), "of an earlier restore").unwrap();
    let few = Store::bring_back(dir.path(), Some(1)).await.unwrap_err();
    assert!(matches!(few, BackupError::TooFew { known: 2, given: 1 }), "{few}");
    let lost = Store::bring_back(dir.path(), Some(2)).await.unwrap().charged;
    assert_eq!(lost[0].charged, 2);
    let kept = fs::read(dir.path().join("audit.jsonl.forgotten")).unwrap();
    assert!(kept == b"of an earlier restore" && dir.path().join("audit.jsonl.forgotten-2").exists());
    let store = Store::open(dir.path()).await.unwrap();
    let ledger = Ledger::replay(&store.ledger("wards").await.unwrap()).unwrap();
    assert_eq!(ledger.releases(), 3);
}

#[tokio::test]
async fn what_is_missing_or_cut_beside_a_book_that_knows_better_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    let mut books = Books::found(dir.path()).await;
    let early = image(dir.path());
    books.release(1, false).await.unwrap();
    books.release(2, false).await.unwrap();
    books.close().await;
    let log = |dir: &Path| dir.join("audit.jsonl");

    let cut = image(dir.path());
    let text = fs::read_to_string(log(cut.path())).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    fs::write(log(cut.path()), lines[..2].concat()).unwrap();
    assert!(refused(cut.path()).await.contains("the file has 2"));
    fs::copy(log(early.path()), log(cut.path())).unwrap();
    assert!(refused(cut.path()).await.contains("the log was cut, exchanged or removed"));
    fs::remove_file(log(cut.path())).unwrap();
    assert!(refused(cut.path()).await.contains("the file is not there"));

    let gone = image(dir.path());
    for name in ["state.sqlite", "state.sqlite-wal", "state.sqlite-shm"] {
        let _ = fs::remove_file(gone.path().join(name));
    }
    let said = refused(gone.path()).await;
    assert!(said.contains("empty or gone") && said.contains("every revocation"), "{said}");

    // Of both the older copy: the models that were released since tell.
    let older = image(dir.path());
    for name in ["state.sqlite", "state.sqlite-wal", "audit.jsonl"] {
        let _ = fs::remove_file(older.path().join(name));
        let _ = fs::copy(early.path().join(name), older.path().join(name));
    }
    let said = refused(older.path()).await;
    assert!(said.contains("--lost-releases 2 or more"), "{said}");
}

#[tokio::test]
async fn a_database_that_contradicts_itself_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut books = Books::found(dir.path()).await;
    for round in 1..4 {
        books.release(round, false).await.unwrap();
    }
    books.close().await;
    for (change, says) in [
        ("UPDATE checkpoints SET round = 2", "ended round 2 last"),
        ("UPDATE checkpoints SET releases = 2", "its ledger has 3"),
        ("UPDATE models SET sha256 = 'ab' WHERE round = 2", "another model"),
        ("DELETE FROM models WHERE round = 3", "round 3"),
        ("UPDATE runs SET plan_toml = plan_toml || char(10)", "another plan"),
        ("UPDATE runs SET plan_toml = 'rounds = 4'", "its ledger has 3"),
        ("UPDATE revocations SET before = 99", "site south was revoked"),
        ("DELETE FROM revocations", "site south was revoked"),
        ("DELETE FROM state_version", "at version"),
        ("DROP TRIGGER ledger_never_shrinks; DELETE FROM ledger WHERE sequence = 6", "ledger has 2"),
        (
            "DROP TRIGGER ledger_never_changes; UPDATE ledger SET population = 'warda' WHERE sequence = 6",
            "warda",
        ),
    ] {
        let changed = image(dir.path());
        let pool = database::sqlite(changed.path(), true).await.unwrap();
        sqlx::raw_sql(change).execute(&pool).await.unwrap();
        pool.close().await;
        let said = refused(changed.path()).await;
        assert!(said.contains(says) && said.contains("--lost-releases"), "{change}: {said}");
    }
    assert!(Store::open(dir.path()).await.is_ok(), "what was not changed is accused");
}

#[tokio::test]
async fn a_changed_count_of_a_client_s_releases_is_found_when_its_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut books = Books::found(dir.path()).await;
    books.release(1, false).await.unwrap();
    let change = "UPDATE clients SET releases = releases - 1";
    sqlx::query(change).execute(&books.store.pool).await.unwrap();
    let said = books.store.load(RUN).await.unwrap_err().to_string();
    assert!(said.contains("north was changed") && said.contains("backup"), "{said}");
}

#[tokio::test]
async fn a_round_that_was_released_cannot_be_released_as_another_model() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    submit(&store, RUN, &begin([0.0; 3])).await;
    store.commit(RUN, &layout(), &commit(1, [1.0; 3])).await.unwrap();
    let again = store.commit(RUN, &layout(), &commit(1, [2.0; 3])).await;
    assert!(matches!(again, Err(StoreError::ReleasedTwice { round: 1, .. })), "{again:?}");
}

/// The names of the files of models that anybody can read.
fn readable(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir.join("blobs")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".safetensors")).collect()
}

#[tokio::test]
async fn nothing_can_be_read_before_it_is_paid_and_what_is_paid_is_published_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let mut books = Books::found(dir.path()).await;
    books.release(1, false).await.unwrap();
    let before = readable(dir.path());
    // Files are written, the transaction never comes.
    let done = round_of(2);
    let (layout, paid) = (layout(), super::super::Readable::OncePaid);
    let files = books.store.write_files(RUN, &layout, &done.checkpoint, paid).await.unwrap();
    assert_eq!(readable(dir.path()), before, "an unpaid release can be read");
    let text: Vec<u8> = done.checkpoint.model.values().iter().flat_map(|value| value.to_le_bytes()).collect();
    let sealed = &files.sealed[&files.model];
    let bytes = fs::read(dir.path().join("blobs").join(format!("{}.sealed", sealed.name))).unwrap();
    assert!(!bytes.windows(text.len()).any(|window| window == text));
    let crashed = image(dir.path());
    let store = Store::open(crashed.path()).await.unwrap();
    assert_eq!(readable(crashed.path()), before);
    assert!(!crashed.path().join("blobs").join(format!("{}.sealed", sealed.name)).exists());
    drop(store);
    // The transaction is made, and the program dies before anything is published.
    let died = books.release(2, true).await;
    assert!(died.is_err() && readable(dir.path()) == before, "it can be read before the log knows of it");
    let crashed = image(dir.path());
    let looking = Store::look(crashed.path()).await.unwrap();
    let last = looking.models(RUN).await.unwrap().pop().unwrap();
    assert_eq!(looking.values(&last).await.unwrap(), *done.checkpoint.model);
    let copy = crashed.path().join("copy");
    looking.back_up(crashed.path(), &copy).await.unwrap();
    looking.close().await;
    Store::bring_back(&copy, Some(0)).await.unwrap();
    for state in [crashed.path(), &copy] {
        let store = Store::open(state).await.unwrap();
        assert_eq!(store.load(RUN).await.unwrap().checkpoint, done.checkpoint);
        let last = store.models(RUN).await.unwrap().pop().unwrap();
        assert!(Path::new(&last.place).exists(), "the paid release is not published");
        let unlogged = store.take_unlogged();
        let expected = Unlogged { run: RUN, round: 2, model_sha256: last.line.sha256 };
        assert_eq!(unlogged, [expected], "the log takes up what it missed");
    }
}

#[tokio::test]
async fn the_storage_of_a_restored_state_may_hold_as_many_unknown_models_as_were_charged() {
    let dir = tempfile::tempdir().unwrap();
    let mut books = Books::found(dir.path()).await;
    books.release(1, false).await.unwrap();
    let early = image(dir.path());
    let own = readable(early.path());
    books.release(2, false).await.unwrap();
    books.release(3, false).await.unwrap();
    for name in readable(dir.path()) {
        fs::copy(dir.path().join("blobs").join(&name), early.path().join("blobs").join(&name)).unwrap();
    }
    let said = refused(early.path()).await;
    assert!(said.contains("--lost-releases 2 or more"), "{said}");
    let few = image(early.path());
    assert!(Store::bring_back(few.path(), Some(1)).await.is_err(), "one charge pays for two releases");
    assert_eq!(Store::bring_back(early.path(), Some(2)).await.unwrap().charged[0].charged, 2);
    let store = Store::open(early.path()).await.unwrap();
    assert_eq!(Ledger::replay(&store.ledger("wards").await.unwrap()).unwrap().releases(), 3);
    assert_eq!(readable(early.path()), own, "what was lost is still there");
}

#[tokio::test]
async fn a_copy_of_a_damaged_state_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut books = Books::found(dir.path()).await;
    books.release(1, false).await.unwrap();
    books.close().await;
    let log = dir.path().join("audit.jsonl");
    let good = fs::read(&log).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(&log, bad).unwrap();
    let back_up = async |name: &str| {
        let looking = Store::look(dir.path()).await.unwrap();
        let done = looking.back_up(dir.path(), &dir.path().join(name)).await;
        looking.close().await;
        done
    };
    assert!(back_up("a").await.unwrap_err().to_string().contains("audit.jsonl"));
    fs::write(&log, &good).unwrap();
    let pool = database::sqlite(dir.path(), true).await.unwrap();
    let change = "DROP TRIGGER ledger_never_changes; UPDATE ledger SET record = replace(record, '20', '21') WHERE sequence = 1";
    sqlx::raw_sql(change).execute(&pool).await.unwrap();
    pool.close().await;
    let said = back_up("b").await.unwrap_err().to_string();
    assert!(said.contains("ledger of `wards`") && said.contains("record 1"), "{said}");
}

#[tokio::test]
async fn a_damaged_header_is_told_at_once_with_the_file_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let mut books = Books::found(dir.path()).await;
    books.release(1, false).await.unwrap();
    books.close().await;
    let thorough = damages() > 100;
    // The magic, the size of a page, the versions of the format, what a page keeps free, the schema's format, the encoding.
    let places: Vec<usize> =
        if thorough { (0..100).collect() } else { vec![0, 15, 16, 18, 19, 20, 21, 47, 59] };
    let mut refusals = 0;
    for at in places {
        let state = image(dir.path());
        let file = state.path().join("state.sqlite");
        let mut bytes = fs::read(&file).unwrap();
        bytes[at] ^= 0x55;
        fs::write(&file, bytes).unwrap();
        let looked = match Store::look(state.path()).await {
            Ok(store) => store.check_books(state.path()).await.err(),
            Err(error) => Some(error),
        };
        let opened = Store::open(state.path()).await.err();
        for said in looked.into_iter().chain(opened).map(|error| error.to_string()) {
            // The schema's number is there, too.
            if (60..64).contains(&at) || said.contains("schema") {
                continue;
            }
            refusals += 1;
            let helps = said.to_lowercase().contains("restore the newest backup");
            assert!(said.contains("state.sqlite") && helps && !said.contains("pool"), "byte {at}: {said}");
        }
    }
    assert!(refusals >= 8, "{refusals}");
}

#[tokio::test]
async fn a_database_that_another_program_holds_locked_is_not_called_damaged() {
    use sqlx::Connection as _;
    let dir = tempfile::tempdir().unwrap();
    Books::found(dir.path()).await.close().await;
    let url = format!("sqlite:{}", dir.path().join("state.sqlite").display());
    let mut other = sqlx::AnyConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let said = refused(dir.path()).await;
    assert!(said.contains("state.sqlite: another program holds this database locked"), "{said}");
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    Store::open(dir.path()).await.unwrap();
}

/// A number below `below` that follows from `seed`.
fn draw(seed: u64, below: usize) -> usize {
    let hash = Digest::of(&seed.to_le_bytes()).to_string();
    (u64::from_str_radix(&hash[..15], 16).unwrap() % below.max(1) as u64) as usize
}

fn damages() -> u64 {
    if std::env::var("CONSORTIA_THOROUGH").is_ok_and(|set| set == "1") { 200 } else { 6 }
}

/// Opens a state whatever was done to it. What it then knows must be all that was released.
async fn examine(dir: &Path, what: &str, rounds: u32) -> bool {
    let opened = async {
        let store = Store::open(dir).await?;
        let stored = store.load(RUN).await?;
        Ok::<_, StoreError>((store, stored))
    };
    match opened.await {
        Ok((store, stored)) => {
            let ledger = Ledger::replay(&store.ledger("wards").await.unwrap()).unwrap();
            let populations = store.populations().await.unwrap();
            let released = store.models(RUN).await.unwrap().len() as u32 - 1;
            let known = (ledger.releases(), released, stored.checkpoint.round.0, populations.len());
            assert_eq!(known, (u64::from(rounds), rounds, rounds, 1), "{what}: started, and has forgotten");
            assert_eq!(store.revocations().await.unwrap().len(), 1, "{what}: a revoked site is let in");
            store.close().await;
            true
        }
        Err(error) => {
            let said = error.to_string();
            let helps = ["backup", "--lost-releases", "rename", "install the newer"];
            assert!(helps.iter().any(|help| said.contains(help)), "{what}: says not what to do: {said}");
            false
        }
    }
}

#[tokio::test]
async fn no_random_damage_of_a_file_makes_a_state_that_starts_and_has_forgotten_a_release() {
    const ROUNDS: u32 = 5;
    let dir = tempfile::tempdir().unwrap();
    let mut books = Books::found(dir.path()).await;
    let mut copies = Vec::new();
    for round in 1..=ROUNDS {
        copies.push(image(dir.path()));
        books.release(round, false).await.unwrap();
    }
    // As a kill leaves it: with the newest transactions in SQLite's log.
    let crashed = image(dir.path());
    let mut names: Vec<String> =
        ["state.sqlite", "state.sqlite-wal", "state.sqlite-shm", "audit.jsonl"].map(str::to_owned).into();
    let blobs = fs::read_dir(crashed.path().join("blobs")).unwrap();
    names.extend(blobs.map(|entry| format!("blobs/{}", entry.unwrap().file_name().to_string_lossy())));
    names.truncate(6);
    assert!(examine(image(crashed.path()).path(), "no damage", ROUNDS).await, "an honest crash is refused");
    let (mut started, mut refused) = (0u32, 0u32);
    for (number, name) in (0u64..).zip(&names) {
        for damage in 0..damages() {
            let seed = number << 32 | damage;
            let state = image(crashed.path());
            let file = state.path().join(name);
            let mut bytes = fs::read(&file).unwrap();
            let at = draw(seed, bytes.len());
            let what = match damage % 4 {
                0 | 1 => {
                    bytes[at] ^= 1 << draw(seed + 7, 8);
                    fs::write(&file, &bytes).unwrap();
                    format!("{name}: a bit of byte {at} flipped")
                }
                2 => {
                    fs::write(&file, &bytes[..at]).unwrap();
                    format!("{name}: cut at {at}")
                }
                _ if damage < 4 => {
                    fs::remove_file(&file).unwrap();
                    format!("{name}: removed")
                }
                _ => {
                    let copy = &copies[draw(seed, copies.len())];
                    let older = fs::read(copy.path().join(name));
                    if let Ok(older) = older {
                        fs::write(&file, older).unwrap();
                    } else {
                        fs::remove_file(&file).unwrap();
                    }
                    format!("{name}: an older copy")
                }
            };
            match examine(state.path(), &what, ROUNDS).await {
                true => started += 1,
                false => refused += 1,
            }
        }
    }
    println!("{started} started with all they knew, {refused} were refused");
    assert!(refused > 0);
}

#[tokio::test]
async fn an_empty_database_without_a_log_beside_models_is_no_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let mut books = Books::found(dir.path()).await;
    books.release(1, false).await.unwrap();
    let folder = image(dir.path());
    books.close().await;
    for name in ["state.sqlite", "state.sqlite-wal", "state.sqlite-shm", "audit.jsonl"] {
        let _ = fs::remove_file(folder.path().join(name));
    }
    fs::write(folder.path().join("state.sqlite"), "").unwrap();
    let models = readable(folder.path());
    assert!(!models.is_empty());
    let said = refused(folder.path()).await;
    assert!(said.contains("safetensors") && said.contains("restore the newest backup"), "{said}");
    assert_eq!(readable(folder.path()), models, "what is evidence stays");
}
