//! Simulations that do not go well: interrupted, on a full disk, without a release. Each says so, and leaves what it has.
#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic, and wait for real time to pass"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_consortia");
const PLAN: &str = "name = \"trial\"\nrounds = 3\nmodel = \"logistic\"\n\
    [data.tensor]\nshape = [4]\ntarget = { classes = 2 }\n\
    [training]\nbatch_size = 16\noptimizer = { sgd = { learning_rate = 0.05 } }\n\
    [simulation]\nclients = 3\ndataset = { synthetic = { rows = 300, test_rows = 60 } }\n";

fn consortia(args: &[&str]) -> Output {
    Command::new(BINARY).args(args).stdin(Stdio::null()).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn talk(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn object(output: &Output) -> Value {
    let out = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(out.lines().last().unwrap_or_default())
        .unwrap_or_else(|_| panic!("{out}{}", talk(output)))
}

/// A plan in a folder of its own.
fn planned(plan: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("plan.toml");
    std::fs::write(&file, plan).unwrap();
    (dir, file)
}

/// The folder of the one run in `parent`, once it has some events.
fn begun(parent: &Path) -> PathBuf {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let found =
            std::fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path()).next();
        let has_events =
            |folder: &PathBuf| folder.join("events.jsonl").metadata().is_ok_and(|file| file.len() > 0);
        if let Some(folder) = found.filter(has_events) {
            return folder;
        }
        assert!(Instant::now() < until, "no event in a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn an_interrupted_simulation_writes_what_it_has_and_goes_on_to_the_same_bits() {
    let plan = PLAN.replace("rounds = 3", "rounds = 40000");
    for signal in ["-INT", "-TERM"] {
        let (dir, file) = planned(&plan);
        let (out, whole) = (dir.path().join("out"), dir.path().join("whole"));
        let child = Command::new(BINARY)
            .args(["simulate", text(&file), "--out", text(&out), "-q"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let folder = begun(&out);
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        let said = talk(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("interrupted after round") && said.contains("--resume"), "{said}");
        for left in ["model.safetensors", "best.safetensors", "metrics.csv", "report.html", "checkpoint.json"]
        {
            assert!(folder.join(left).exists(), "{left}: {said}");
        }
        assert!(!folder.join("reserved.part").exists());
        let rest = consortia(&["--format", "json", "simulate", "--resume", text(&folder), "-q"]);
        assert!(rest.status.success(), "{}", talk(&rest));
        let (rest, threads) = (object(&rest), if signal == "-INT" { "1" } else { "2" });
        let all =
            ["--format", "json", "simulate", text(&file), "--out", text(&whole), "--threads", threads, "-q"];
        let all = object(&consortia(&all));
        for same in ["model_sha256", "rounds", "updates", "accuracy", "loss", "best_round", "virtual_seconds"]
        {
            assert_eq!(rest[same], all[same], "{same}");
        }
        let read = |folder: &Path, name: &str| std::fs::read(folder.join(name)).unwrap();
        let all = PathBuf::from(all["results"].as_str().unwrap());
        for name in ["metrics.csv", "best.safetensors", "model.safetensors"] {
            assert!(read(&folder, name) == read(&all, name), "{name} differs");
        }
        let rounds = |folder: &Path| {
            let text = std::fs::read_to_string(folder.join("events.jsonl")).unwrap();
            let of = |event: &str| text.lines().filter(|line| line.contains(event)).count();
            (of("\"event\":\"round\""), of("\"event\":\"opened\""), of("\"event\":\"ended\""))
        };
        assert_eq!(rounds(&folder), rounds(&all), "every event once");
        assert!(!folder.join("checkpoint.json").exists(), "it is over");
        let again = consortia(&["simulate", "--resume", text(&folder)]);
        assert_eq!(again.status.code(), Some(2));
        assert!(talk(&again).contains("checkpoint.json"), "{}", talk(&again));
    }
}

#[test]
fn a_second_signal_ends_a_simulation_at_once() {
    let (dir, file) = planned(&PLAN.replace("rounds = 3", "rounds = 1000000"));
    let out = dir.path().join("out");
    let mut child = Command::new(BINARY)
        .args(["simulate", text(&file), "--out", text(&out), "-q"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    begun(&out);
    for _ in 0..2 {
        // The first may have ended it already.
        let _ = Command::new("kill").args(["-TERM", &child.id().to_string()]).stderr(Stdio::null()).status();
    }
    let told = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(told.elapsed() < Duration::from_secs(20), "{:?}", told.elapsed());
}

#[test]
fn a_full_disk_stops_a_simulation_at_the_first_failed_write_with_its_model_saved() {
    let (dir, file) = planned(&PLAN.replace("rounds = 3", "rounds = 1000000"));
    let out = dir.path().join("out");
    // Files of at most 512 KiB stand for the disk: a write beyond fails, as one on a full disk does.
    let script = "trap '' XFSZ; ulimit -f 1024; exec \"$0\" simulate \"$1\" --out \"$2\" -q";
    let limited = |blocks: &str| {
        let script = script.replace("1024", blocks);
        Command::new("sh").args(["-c", &script, BINARY, text(&file), text(&out)]).output().unwrap()
    };
    let output = limited("1024");
    let said = talk(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("events.jsonl") && said.contains("model.safetensors"), "{said}");
    let folder = begun(&out);
    let verified = consortia(&["model", "verify", text(&folder.join("model.safetensors"))]);
    assert!(verified.status.success(), "{}", talk(&verified));
    std::fs::remove_dir_all(&out).unwrap();
    let refused = limited("64");
    assert!(talk(&refused).contains("no room for the results"), "{}", talk(&refused));
}

#[test]
fn a_simulation_that_released_nothing_has_failed_and_says_why() {
    let wild = PLAN
        .replace("learning_rate = 0.05", "learning_rate = 1e38")
        .replace("test_rows = 60", "test_rows = 60, spread = 9.0");
    for failures_max in ["1", "10", "1000000"] {
        let (dir, file) = planned(
            &wild.replace("[simulation]", &format!("[cohort]\nfailures_max = {failures_max}\n[simulation]")),
        );
        let output = consortia(&["--format", "json", "simulate", text(&file), "--out", text(dir.path())]);
        let (said, ended) = (talk(&output), object(&output));
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(ended["state"], "failed", "{ended}");
        for told in [&said, ended["message"].as_str().unwrap()] {
            assert!(told.contains("declined") && told.contains("not_finite"), "{told}");
            assert!(told.contains("learning rate"), "the learner's own words: {told}");
        }
        assert_eq!(ended["declined"][0]["reason"], "not_finite", "{ended}");
    }
}

#[test]
fn a_simulation_says_whose_weight_is_cut_and_that_nobody_tests() {
    let (dir, file) = planned(
        &PLAN
            .replace("rows = 300, test_rows = 60", "rows = 300")
            .replace("[simulation]", "[update]\nweight_max = 20\n[simulation]"),
    );
    let output = consortia(&["--format", "json", "simulate", text(&file), "--out", text(dir.path())]);
    assert!(output.status.success(), "{}", talk(&output));
    let warnings = object(&output)["warnings"].to_string();
    assert!(warnings.contains("count as 20") && warnings.contains("weight_max"), "{warnings}");
    let checked = consortia(&["--format", "json", "check", text(&file)]);
    let warned = object(&checked).to_string();
    assert!(warned.contains("20"), "{warned}");
}

#[test]
fn every_client_has_its_numbers_in_the_table_the_report_and_on_request() {
    let (dir, file) = planned(&PLAN.replace(
        "dataset = { synthetic = { rows = 300, test_rows = 60 } }",
        "dataset = { synthetic = { rows = 300, test_rows = 60 } }\npartition = \"iid\"",
    ));
    let output = consortia(&["--format", "json", "simulate", text(&file), "--out", text(dir.path()), "-v"]);
    assert!(output.status.success(), "{}", talk(&output));
    let folder = PathBuf::from(object(&output)["results"].as_str().unwrap());
    let csv = std::fs::read_to_string(folder.join("metrics.csv")).unwrap();
    let header = csv.lines().next().unwrap();
    let client = header
        .split(',')
        .find_map(|column| {
            column.strip_suffix("_train_loss").filter(|name| !name.is_empty() && *name != "train")
        })
        .unwrap_or_else(|| panic!("{header}"));
    assert!(csv.lines().all(|line| line.split(',').count() == header.split(',').count()), "{csv}");
    let page = std::fs::read_to_string(folder.join("report.html")).unwrap();
    assert!(page.contains(client), "the report names {client}");
    assert!(talk(&output).lines().any(|line| line.trim_start().starts_with(client)), "{}", talk(&output));
}

#[test]
fn ids_that_would_be_one_client_are_refused_with_both_and_an_id_that_is_no_name_is_shown_as_it_stands() {
    let plan = "name = \"trial\"\nrounds = 1\nmodel = \"logistic\"\n\
        [data.table]\nlabel = \"ill\"\ntarget = { classes = 2 }\nfeatures = [\"age\"]\n\
        [training]\nbatch_size = 4\noptimizer = { sgd = { learning_rate = 0.05 } }\n\
        [simulation]\ndataset = { files = { csv = { train = \"h.csv\", test_fraction = 0.3 } } }\n\
        partition = { natural = { column = \"hospital\" } }\n";
    let (dir, file) = planned(plan);
    let simulate = |hospitals: [&str; 3]| {
        let mut table = "hospital,age,ill\n".to_owned();
        for row in 0..60 {
            table.push_str(&format!("{},{},{}\n", hospitals[row % 3], 40 + row, row % 2));
        }
        std::fs::write(dir.path().join("h.csv"), table).unwrap();
        let output = consortia(&["simulate", text(&file), "--out", text(&dir.path().join("runs"))]);
        (output.status.code().unwrap(), talk(&output))
    };
    for alike in [["Müller", "Möller", "Mainz"], ["St Mary", "st_mary", "Mainz"]] {
        let (code, said) = simulate(alike);
        assert!(code == 2 && said.contains(alike[0]) && said.contains(alike[1]), "{code} {said}");
    }
    let (code, said) = simulate(["-->", "Muller", "Mainz"]);
    assert!(code == 2 && said.contains("the id `-->` in the data"), "{code} {said}");
    let (code, said) = simulate(["Muller", "Moller", "Mainz"]);
    assert_eq!(code, 0, "{said}");
}

#[test]
fn without_test_records_nothing_is_said_to_be_measured_on_them() {
    let none = PLAN.replace("test_rows = 60", "test_rows = 0");
    let attacked =
        format!("{none}adversaries = {{ count = 1, attack = {{ backdoor = {{ target = 1 }} }} }}\n");
    for plan in [&none, &attacked] {
        let (dir, file) = planned(plan);
        let output = consortia(&["simulate", text(&file), "--out", text(dir.path())]);
        let (said, table) = (talk(&output), String::from_utf8_lossy(&output.stdout).into_owned());
        assert!(output.status.success() && !said.contains("test loss"), "{said}");
        assert!(said.contains("there are no test records") && said.contains("test_rows"), "{said}");
        assert!(table.contains("test accuracy  - (there are no test records)"), "{table}");
        assert!(table.contains("training loss") && !table.contains("0.0000"), "{table}");
        let output = consortia(&["--format", "json", "simulate", text(&file), "--out", text(dir.path())]);
        let ended = object(&output);
        assert!(ended["accuracy"].is_null() && ended["loss"].is_null(), "{ended}");
        assert!(ended["training_loss"].is_f64(), "{ended}");
        let folder = PathBuf::from(ended["results"].as_str().unwrap());
        let events = std::fs::read_to_string(folder.join("events.jsonl")).unwrap();
        let rounds = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let rounds: Vec<Value> = rounds.filter(|event| event["event"] == "round").collect();
        assert!(rounds.len() == 3 && rounds.iter().all(|round| round["central"].is_null()), "{rounds:?}");
        let page = std::fs::read_to_string(folder.join("report.html")).unwrap();
        assert!(page.contains("there are no test records"), "the report says so");
        if plan == &attacked {
            assert!(said.contains("1 of 3 clients is corrupted (backdoor)"), "{said}");
            assert!(said.contains("whether the backdoor opens is not measured"), "{said}");
            assert!(table.contains("attack success - (there are no test records)"), "{table}");
            assert!(page.contains("whether the backdoor opens is not measured"), "the report says so");
            let told = &ended["adversaries"];
            assert!(told["success"].is_null() && told["success_unmeasured"].is_string(), "{told}");
        }
    }
}

#[test]
fn a_norm_bound_that_rounds_all_training_away_is_warned_of_before_and_in_every_round() {
    let (dir, file) = planned(&PLAN.replace("[simulation]", "[update]\nnorm_max = 1e9\n[simulation]"));
    let checked = consortia(&["check", text(&file)]);
    assert!(checked.status.success());
    let output = consortia(&["--format", "json", "simulate", text(&file), "--out", text(dir.path())]);
    let (said, ended) = (talk(&output), object(&output));
    for said in [&talk(&checked), &said] {
        let told = [
            "update.norm_max = 1e9",
            "Its step is 29.8",
            "update.weight_max",
            "Set update.norm_max to at most",
        ];
        assert!(told.iter().all(|told| said.contains(told)), "{said}");
    }
    assert!(said.contains("zero in every value"), "{said}");
    let warnings = ended["warnings"].to_string();
    assert!(warnings.contains("3 rounds: the update is zero in every value"), "{warnings}");
    let folder = PathBuf::from(ended["results"].as_str().unwrap());
    let events = std::fs::read_to_string(folder.join("events.jsonl")).unwrap();
    assert_eq!(events.lines().filter(|line| line.contains("\"event\":\"warned\"")).count(), 4, "{events}");
    // A bound that leaves something is none to warn of.
    let (_dir, fine) = planned(PLAN);
    assert!(!talk(&consortia(&["check", text(&fine)])).contains("norm_max"));
}

#[test]
fn a_model_that_corrupted_clients_destroy_is_said_to_be_worse_than_it_began() {
    let adversaries = "adversaries = { count = 2, attack = { sign_flip = { scale = 30.0 } } }\n";
    let plan =
        PLAN.replace("rounds = 3", "rounds = 6").replace("learning_rate = 0.05", "learning_rate = 0.5");
    let (dir, file) = planned(&format!("{plan}{adversaries}"));
    let output = consortia(&["--format", "json", "simulate", text(&file), "--out", text(dir.path())]);
    let warnings = object(&output)["warnings"].to_string() + &talk(&output);
    assert!(
        warnings.contains("the model has become worse") || warnings.contains("has run away"),
        "{warnings}"
    );
    assert!(warnings.contains("2 of 3 clients are corrupted"), "{warnings}");
}

/// A table of 40 rows whose first column has these values in turn.
fn values_of(column: [&str; 2]) -> String {
    let rows = (0..40).map(|row| format!("{},{}\n", column[row % 2], row % 7));
    "a,y\n".to_owned() + &rows.collect::<String>()
}

const GROUPS: &str = "name = \"groups\"\nrounds = 2\n\
    [data.table]\nlabel = \"y\"\ntarget = \"real\"\nfeatures = [\"a\"]\n[method.kmeans]\nclusters = 2\n\
    [simulation]\nclients = 2\ndataset = { files = { csv = { train = \"t.csv\" } } }\n";

#[test]
fn values_that_a_method_cannot_sum_are_answered_with_what_to_do_and_in_short_numbers() {
    let (dir, file) = planned(GROUPS);
    std::fs::write(dir.path().join("t.csv"), values_of(["3.25e15", "-7.5e17"])).unwrap();
    let output = consortia(&["simulate", text(&file), "--out", text(&dir.path().join("out"))]);
    let said = talk(&output);
    assert!(output.status.code() == Some(1) && said.contains("not_finite"), "{said}");
    assert!(said.contains("standardise"), "{said}");
    assert!(
        !said.contains("learning rate") && !said.contains("0000000"),
        "no advice of training, no run 0: {said}"
    );
    let digits = said.split(|c: char| !c.is_ascii_digit()).map(str::len).max();
    assert!(digits < Some(9), "{said}");
}

#[test]
fn a_number_that_is_too_large_is_not_said_to_be_infinite() {
    let (dir, file) = planned(GROUPS);
    for (cell, told) in [
        ("1e39", "beyond the largest number"),
        ("1e400", "beyond the largest number"),
        ("inf", "not a finite number"),
        ("x", "not a finite number"),
    ] {
        std::fs::write(dir.path().join("t.csv"), values_of(["1.5", cell])).unwrap();
        let output = consortia(&["simulate", text(&file), "--out", text(&dir.path().join("out"))]);
        let said = talk(&output);
        assert!(
            output.status.code() == Some(2) && said.contains("line 3") && said.contains(told),
            "{cell}: {said}"
        );
    }
}

#[test]
fn an_audit_of_a_plan_that_promises_nothing_is_refused_before_the_first_round() {
    let (dir, file) = planned(PLAN);
    let out = dir.path().join("out");
    let output = consortia(&["simulate", text(&file), "--audit", "gdp", "--out", text(&out)]);
    let said = talk(&output);
    assert!(output.status.code() == Some(2) && said.contains("[privacy.central]"), "{said}");
    assert!(!said.contains("round 1") && !out.exists(), "nothing was run: {said}");
}
