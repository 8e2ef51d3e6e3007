//! Logs that are rotated, killed in the middle of it, and damaged.

use std::collections::BTreeMap;
use std::io::Write as _;

use serde::Serialize;
use serde_json::value::RawValue;

use super::super::ChainWriter;
use super::*;

const SMALL: SegmentBytes = SegmentBytes(1 << 12);

/// A record that makes a line of some 600 bytes.
#[derive(Serialize)]
struct Entry {
    event: &'static str,
    index: u64,
    text: String,
}

fn entry(index: u64) -> Entry {
    Entry { event: "something", index, text: "x".repeat(400) }
}

fn raw(record: &impl Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(record).unwrap()
}

/// What opens a segment: its continuation, and a record that is carried on.
fn opening(writer: &SegmentWriter) -> Vec<Box<RawValue>> {
    #[derive(Serialize)]
    struct Opening {
        event: &'static str,
        #[serde(flatten)]
        of: Continuation,
    }
    let carried = serde_json::json!({ "event": "all_carried" });
    vec![raw(&Opening { event: CONTINUED, of: writer.continuation() }), raw(&carried)]
}

fn write(writer: &mut SegmentWriter, indices: std::ops::Range<u64>) {
    for index in indices {
        if writer.is_due() {
            writer.rotate(&opening(writer)).unwrap();
        }
        writer.append(&entry(index)).unwrap();
    }
    writer.sync().unwrap();
}

fn log_in(dir: &Path) -> PathBuf {
    dir.join("audit.jsonl")
}

/// A log of several segments.
fn long() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = log_in(dir.path());
    write(&mut SegmentWriter::open(&path, SMALL, &mut |_| ()).unwrap().0, 0..40);
    (dir, path)
}

type Files = BTreeMap<String, Vec<u8>>;

fn files(dir: &Path) -> Files {
    entries(dir).unwrap().into_iter().map(|(name, path)| (name, std::fs::read(path).unwrap())).collect()
}

fn folder(files: &Files) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

/// The indices of all entries, in order, and what the survey says.
fn indices(path: &Path, archives: &[PathBuf]) -> (Vec<u64>, Survey) {
    #[derive(serde::Deserialize)]
    struct Indexed {
        index: u64,
    }
    let mut found = Vec::new();
    let survey = survey(path, archives, &mut |_, segment| {
        found.extend(segment.lines.links.iter().filter_map(|link| Some(link.read::<Indexed>().ok()?.index)));
    });
    (found, survey.unwrap())
}

fn said(survey: &Survey) -> String {
    survey.faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_long_log_is_one_chain_over_files_whose_names_sort() {
    let (dir, path) = long();
    let all = files(dir.path());
    assert!(all.len() > 4, "{:?}", all.keys());
    // In the order of the names the files are one chain, as if it had never been rotated.
    let text = all.values().fold(Vec::new(), |text, part| [text, part.clone()].concat());
    let lines = super::super::read_lines(&text).unwrap();
    let (found, survey) = indices(&path, &[]);
    assert_eq!(found, (0..40).collect::<Vec<_>>());
    assert_eq!((survey.end(), survey.records()), (lines.chain, lines.chain.len()));
    assert!(survey.faults.is_empty() && survey.absent.is_empty(), "{survey:?}");
    for (part, segment) in survey.segments.iter().zip(1..) {
        assert_eq!(part.number, segment);
        let bytes = std::fs::metadata(&part.path).unwrap().len();
        assert!(bytes < 2 * SMALL.0, "{bytes}");
    }
    // It goes on where it was, and reads the newest segment alone.
    let before = survey.segments.len();
    for (name, _) in all.iter().filter(|(name, _)| *name != "audit.jsonl").take(before - 2) {
        std::fs::write(dir.path().join(name), "nobody reads this").unwrap();
    }
    let mut shown = Vec::new();
    let (mut writer, newest) = SegmentWriter::open(&path, SMALL, &mut |link| shown.push(link.hash)).unwrap();
    assert_eq!((newest.end, newest.number), (survey.end(), before as u64));
    let last = &lines.links[lines.links.len() - shown.len()..];
    assert_eq!(shown, last.iter().map(|link| link.hash).collect::<Vec<_>>());
    write(&mut writer, 40..41);
}

#[test]
fn a_log_of_one_large_file_is_its_first_segment() {
    let dir = tempfile::tempdir().unwrap();
    let path = log_in(dir.path());
    let mut old = ChainWriter::new(Chain::new(), File::create(&path).unwrap());
    for index in 0..30 {
        old.append(&entry(index)).unwrap();
    }
    let before = std::fs::read(&path).unwrap();
    write(&mut SegmentWriter::open(&path, SMALL, &mut |_| ()).unwrap().0, 30..31);
    assert_eq!(std::fs::read(closed_path(&path, 1)).unwrap(), before);
    assert_eq!(indices(&path, &[]).0, (0..31).collect::<Vec<_>>());
}

#[test]
fn a_rotation_killed_at_any_step_loses_and_doubles_nothing() {
    let mut steps = 0;
    loop {
        let dir = tempfile::tempdir().unwrap();
        let path = log_in(dir.path());
        let (mut writer, _) = SegmentWriter::open(&path, SMALL, &mut |_| ()).unwrap();
        let mut index = 0;
        while !writer.is_due() {
            writer.append(&entry(index)).unwrap();
            index += 1;
        }
        writer.sync().unwrap();
        writer.fuse = Some(steps);
        let rotated = writer.rotate(&opening(&writer));
        let is_over = writer.fuse.is_some_and(|left| left > 0);
        // As a kill leaves it; a file that is being written may hold any part of its bytes.
        let killed = files(dir.path());
        let mut states = vec![killed.clone()];
        if let Some(next) = killed.get("audit.jsonl.new").filter(|_| killed.contains_key("audit.jsonl")) {
            for cut in [0, 1, next.len() / 2, next.len().saturating_sub(1)] {
                let mut torn = killed.clone();
                torn.insert("audit.jsonl.new".into(), next[..cut.min(next.len())].to_vec());
                states.push(torn);
            }
        }
        for state in states {
            let again = folder(&state);
            let path = log_in(again.path());
            // Whoever only reads it meanwhile sees all, too.
            let (found, survey) = indices(&path, &[]);
            assert!(survey.faults.is_empty() && survey.absent.is_empty(), "step {steps}: {}", said(&survey));
            assert_eq!(found, (0..index).collect::<Vec<_>>(), "step {steps}");
            let (mut writer, _) = SegmentWriter::open(&path, SMALL, &mut |_| ()).unwrap();
            write(&mut writer, index..index + 10);
            let (found, survey) = indices(&path, &[]);
            assert_eq!(found, (0..index + 10).collect::<Vec<_>>(), "step {steps}");
            assert!(survey.faults.is_empty() && survey.segments.len() > 1, "step {steps}: {}", said(&survey));
            assert!(!next_path(&path).exists());
        }
        // Not killed, but failed: the same program goes on.
        writer.fuse = None;
        if let Err(RotateError::Postponed { .. }) = &rotated {
            writer.append(&entry(index)).unwrap();
            index += 1;
        } else if rotated.is_err() {
            assert!(writer.append(&entry(index)).is_err(), "nothing is written into a closed segment");
        }
        write(&mut writer, index..index + 10);
        assert_eq!(indices(&path, &[]).0, (0..index + 10).collect::<Vec<_>>(), "step {steps}");
        if is_over {
            break;
        }
        steps += 1;
    }
    assert!(steps > 6, "{steps}");
}

#[test]
fn what_stands_where_a_segment_is_to_be_closed_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = log_in(dir.path());
    let (mut writer, _) = SegmentWriter::open(&path, SMALL, &mut |_| ()).unwrap();
    while !writer.is_due() {
        writer.append(&entry(0)).unwrap();
    }
    std::fs::write(closed_path(&path, 1), "somebody's").unwrap();
    let refused = writer.rotate(&opening(&writer)).unwrap_err();
    assert!(matches!(&refused, RotateError::Postponed { .. }), "{refused}");
    assert!(refused.to_string().contains("audit.000001.jsonl: the file is there already"), "{refused}");
    assert!(!writer.is_due(), "it is not tried with every record");
    writer.append(&entry(1)).unwrap();
    assert_eq!(std::fs::read(closed_path(&path, 1)).unwrap(), b"somebody's");
}

#[cfg(target_os = "linux")]
#[test]
fn a_record_that_could_not_be_written_is_cut_off_and_can_be_added_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = log_in(dir.path());
    let (mut writer, _) = SegmentWriter::open(&path, SMALL, &mut |_| ()).unwrap();
    for index in 0..3 {
        writer.divert(File::options().write(true).open("/dev/full").unwrap());
        assert!(writer.append(&entry(index)).is_err());
        // A part of the line is on the disk.
        File::options().append(true).open(&path).unwrap().write_all(b"{\"sequence\":").unwrap();
        assert!(writer.append(&entry(index)).is_err(), "nobody knows where it would stand");
        writer.mend().unwrap();
        writer.append(&entry(index)).unwrap();
    }
    writer.sync().unwrap();
    assert_eq!(indices(&path, &[]).0, [0, 1, 2]);
}

/// What a survey says after `change`: its faults, its gaps and the error of a start.
fn after(change: impl FnOnce(&mut Files)) -> (String, Vec<(u64, u64)>, Option<String>) {
    let (dir, _) = long();
    let mut all = files(dir.path());
    change(&mut all);
    let dir = folder(&all);
    let survey = indices(&log_in(dir.path()), &[]).1;
    let gaps = survey.absent.iter().map(|absent| (absent.first, absent.last)).collect();
    let started =
        SegmentWriter::open(&log_in(dir.path()), SMALL, &mut |_| ()).err().map(|fault| fault.to_string());
    (said(&survey), gaps, started)
}

fn closed(number: u64) -> String {
    name_of(&closed_path(Path::new("audit.jsonl"), number))
}

fn swap(all: &mut Files, one: &str, other: &str) {
    let (a, b) = (all[one].clone(), all[other].clone());
    all.insert(one.into(), b);
    all.insert(other.into(), a);
}

#[test]
fn every_segment_that_is_gone_is_named_with_its_records_and_no_start_needs_it() {
    let last = files(long().0.path()).len() as u64 - 1;
    for gone in [1, 2, last] {
        let (faults, gaps, started) = after(|all| drop(all.remove(&closed(gone))));
        assert_eq!((faults.as_str(), gaps, started), ("", vec![(gone, gone)], None));
    }
    let (dir, path) = long();
    let whole = indices(&path, &[]).1;
    let archive = tempfile::tempdir().unwrap();
    for number in 1..3 {
        let name = closed(number);
        std::fs::rename(dir.path().join(&name), archive.path().join(&name)).unwrap();
    }
    let (found, survey) = indices(&path, &[]);
    let absent = &survey.absent[0];
    assert_eq!((absent.from, absent.to + 1), (0, whole.segments[2].start.len()));
    assert_eq!(absent.to_string(), format!("records 0 to {} ({} to {})", absent.to, closed(1), closed(2)));
    assert!(found.len() < 40 && survey.faults.is_empty());
    // One that is in both places is the same.
    std::fs::copy(dir.path().join(closed(3)), archive.path().join(closed(3))).unwrap();
    let (found, survey) = indices(&path, &[archive.path().to_owned()]);
    assert_eq!((found.len(), survey.end(), said(&survey).as_str()), (40, whole.end(), ""));
    std::fs::copy(dir.path().join(closed(4)), archive.path().join(closed(3))).unwrap();
    let said = said(&indices(&path, &[archive.path().to_owned()]).1);
    assert!(said.contains("are both segment 3"), "{said}");
}

#[test]
fn what_was_done_to_closed_segments_is_named_with_its_file() {
    let last = files(long().0.path()).len() as u64 - 1;
    let (said, _, _) = after(|all| swap(all, &closed(1), &closed(3)));
    assert!(said.contains("audit.000001.jsonl, line 1: by its first record it is segment 3"), "{said}");
    assert!(said.contains("audit.000003.jsonl, line 1: by its first record it is segment 1"), "{said}");
    let (said, _, started) = after(|all| swap(all, &closed(2), "audit.jsonl"));
    assert!(said.contains("audit.jsonl is segment 2 itself"), "{said}");
    assert!(started.is_some_and(|said| said.contains("audit.jsonl is segment 2 itself")));

    for number in [1, 2, last] {
        let cut = |lines: usize| {
            move |all: &mut Files| {
                let text = all.get_mut(&closed(number)).unwrap();
                let ends: Vec<usize> = (0..text.len()).filter(|at| text[*at] == b'\n').collect();
                text.truncate(ends[ends.len() - 1 - lines] + 1);
            }
        };
        let (said, gaps, started) = after(cut(2));
        assert!(said.contains(&closed(number)) && said.contains("the file ends before record"), "{said}");
        assert!(said.contains(", line ") && gaps.is_empty(), "{said}");
        assert_eq!(started.is_some(), number == last, "a start reads the end of the one before");
        let (said, _, _) = after(|all| {
            all.get_mut(&closed(number)).unwrap().pop();
        });
        assert!(said.contains(&closed(number)) && said.contains("it has no end"), "{said}");
        let (said, _, _) = after(|all| all.get_mut(&closed(number)).unwrap().clear());
        assert!(said.contains(&closed(number)) && said.contains("empty"), "{said}");
        let (said, gaps, _) = after(|all| all.get_mut(&closed(number)).unwrap()[900] ^= 1);
        let line = if number == 1 { "line 2" } else { "line " };
        assert!(said.contains(&closed(number)) && said.contains(line) && gaps.is_empty(), "{said}");
    }

    // The same segment of another log.
    let other = tempfile::tempdir().unwrap();
    write(&mut SegmentWriter::open(&log_in(other.path()), SMALL, &mut |_| ()).unwrap().0, 100..140);
    for number in [1, 2, last] {
        let foreign = files(other.path())[&closed(number)].clone();
        let (said, _, _) = after(|all| drop(all.insert(closed(number), foreign)));
        assert!(said.contains(&closed(number)) && said.contains("is of another log"), "{said}");
    }
    let foreign = files(other.path())["audit.jsonl"].clone();
    let (said, _, started) = after(|all| drop(all.insert("audit.jsonl".into(), foreign)));
    assert!(said.contains("audit.jsonl, line 1: it does not go on from the end of"), "{said}");
    assert!(started.is_some());

    let (said, _, _) = after(|all| drop(all.insert("audit.0000002.jsonl".into(), all[&closed(2)].clone())));
    assert!(said.contains("are both segment 2 of one log") && said.contains("audit.0000002.jsonl"), "{said}");
    for text in [None, Some(Vec::new())] {
        let (said, _, started) = after(|all| {
            all.remove("audit.jsonl");
            all.extend(text.map(|text| ("audit.jsonl".to_owned(), text)));
        });
        assert!(said.contains("audit.jsonl: the file is missing or has no whole record"), "{said}");
        assert_eq!(started, Some(said));
    }
    // Lines that were cut off its beginning.
    let (said, _, started) = after(|all| {
        let text = all.get_mut("audit.jsonl").unwrap();
        let end = text.iter().position(|byte| *byte == b'\n').unwrap();
        text.drain(..=end);
    });
    assert!(said.contains("audit.jsonl: line 1: record"), "{said}");
    assert!(started.is_some());
}

#[test]
fn a_place_in_the_chain_is_found_in_whichever_segment_has_it() {
    let (dir, path) = long();
    let text = files(dir.path()).into_values().fold(Vec::new(), |text, part| [text, part].concat());
    let hashes: Vec<Digest> =
        super::super::read_lines(&text).unwrap().links.iter().map(|link| link.hash).collect();
    let head_at = |records| {
        let (found, mut sought) = (Snapshot::of(&path).unwrap(), HeadSought::new(records));
        let newest = found.newest(&mut |link| sought.see(link)).unwrap();
        found.head_at(&newest, &sought).unwrap()
    };
    for (records, hash) in (1..).zip(&hashes) {
        assert_eq!(head_at(records), KnownHead::Is(*hash), "{records}");
    }
    assert_eq!(head_at(hashes.len() as u64 + 1), KnownHead::Beyond);
    std::fs::remove_file(dir.path().join(closed(1))).unwrap();
    assert_eq!(head_at(2), KnownHead::Elsewhere);
}

#[test]
fn names_of_segments_are_told_from_others() {
    let log = |log: &str, number| Some((log.to_owned(), number));
    assert_eq!(closed_by_name("audit.000012.jsonl"), log("audit.jsonl", 12));
    assert_eq!(closed_by_name("audit-one.0000007.jsonl"), log("audit-one.jsonl", 7));
    for other in [
        "audit.jsonl",
        "audit-10.0.0.1.jsonl",
        "audit.replaced-12.jsonl",
        "audit.000001.jsonl.new",
        ".000001.jsonl",
        "audit..jsonl",
        "",
    ] {
        assert_eq!(closed_by_name(other), None, "{other}");
    }
    let dir = tempfile::tempdir().unwrap();
    for name in
        ["audit-one.000001.jsonl", "audit-one.jsonl", "audit.000003.jsonl", "ledger.jsonl", "x.000001.jsonl"]
    {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    let logs: Vec<String> = logs_in(dir.path()).unwrap().iter().map(|log| name_of(log)).collect();
    assert_eq!(logs, ["audit-one.jsonl", "audit.jsonl"]);
}

#[test]
fn a_size_that_makes_no_sense_is_refused() {
    for bytes in [0, 1, 4095, (1 << 30) + 1, u64::MAX] {
        let refused = SegmentBytes::new(bytes).unwrap_err();
        assert!(refused.contains(&bytes.to_string()) && refused.contains("4096"), "{refused}");
        assert!(serde_json::from_str::<SegmentBytes>(&bytes.to_string()).is_err());
    }
    assert_eq!(serde_json::from_str::<SegmentBytes>("4096").unwrap().0, 4096);
}
