//! An answer that was computed and not acknowledged: it outlives the site's program, the server's, and the line between them.

use super::*;

/// One training, and nothing else.
const ONCE: &str = "name = \"once\"\nrounds = 1\nmodel = \"logistic\"\n\
    [data.table]\nlabel = \"label\"\ntarget = { classes = 2 }\nfeatures = [\"age\", \"chol\"]\nstandardise = \"site\"\n\
    [training]\nbatch_size = 16\noptimizer = { sgd = { learning_rate = 0.05 } }\n\
    [cohort]\nclients_min = 1\nquorum = 1\ndeadline_seconds = 600\n[evaluation]\nsites = \"none\"\n";

/// So slow that whoever is told that an answer leaves can kill its program before it has left.
const SLOW: &str = "\n[limits]\nupload_bytes_per_second = 4\n";

fn stage() -> Stage {
    let stage = Stage::new();
    std::fs::write(stage.path("plan.toml"), ONCE).unwrap();
    let file = stage.path("site/site.toml");
    let written = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, written + SLOW).unwrap();
    stage
}

impl Stage {
    fn submit_once(&self, address: &str) -> String {
        submit(text(&self.path("plan.toml")), text(&self.path("fed")), address, None)
    }

    /// Records of the site's ledger, trainings that its audit log tells of, and answers that were sent again.
    fn books(&self) -> (usize, usize, usize) {
        let ledger = std::fs::read_to_string(self.path("site/state/ledger.jsonl")).unwrap();
        let resent = self.records("answered").iter().filter(|line| line["outcome"] == "resent").count();
        (ledger.lines().count(), self.records("done").len(), resent)
    }

    /// The files of answers.
    fn kept(&self) -> Vec<PathBuf> {
        let found = std::fs::read_dir(self.path("site/state/outbox")).unwrap();
        found.map(|entry| entry.unwrap().path()).collect()
    }

    /// The run has ended with one update of the site.
    fn counts_one_update(&self, run: &str, address: &str) {
        let end = command(&["run", "watch", run, "--dir", text(&self.path("fed")), "--server", address]);
        assert_eq!((&end["state"], &end["history"][0]["answered"]), (&"finished".into(), &1.into()), "{end}");
        assert_eq!(end["clients"][0]["accepted"], 1, "{end}");
    }
}

#[test]
fn a_site_killed_before_its_answer_has_left_sends_it_in_its_next_life_and_has_paid_once() {
    let stage = stage();
    let (_server, address) = serve(text(&stage.path("fed")), "127.0.0.1:0");
    stage.point_to(&address);
    let site = stage.run();
    site.event("connected");
    let run = stage.submit_once(&address);
    site.next("answering", |line| line["event"] == "answering");
    site.kill();
    let kept = stage.kept();
    let mode = std::fs::metadata(&kept[0]).unwrap().permissions().mode();
    assert_eq!((kept.len(), mode & 0o777), (1, 0o600));
    let site = stage.run();
    site.event("resending");
    site.event("accepted");
    stage.counts_one_update(&run, &address);
    assert_eq!((stage.books(), stage.kept().len()), ((1, 1, 1), 1));
}

#[test]
fn a_damaged_answer_is_said_and_the_site_trains_and_pays_anew() {
    let stage = stage();
    let (_server, address) = serve(text(&stage.path("fed")), "127.0.0.1:0");
    stage.point_to(&address);
    let site = stage.run();
    site.event("connected");
    let run = stage.submit_once(&address);
    site.event("answering");
    site.kill();
    let kept = &stage.kept()[0];
    let mut bytes = std::fs::read(kept).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(kept, bytes).unwrap();
    let site = stage.run();
    let said = site.event("discarded")["message"].as_str().unwrap().to_owned();
    assert!(said.contains(text(kept)) && said.contains("charged again"), "{said}");
    site.event("accepted");
    stage.counts_one_update(&run, &address);
    assert_eq!(stage.books(), (2, 2, 0));
}

#[test]
fn a_site_whose_server_falls_over_sends_its_answer_again_and_its_ledger_is_not_found_too_short() {
    let stage = stage();
    let (server, address) = serve(text(&stage.path("fed")), "127.0.0.1:0");
    stage.point_to(&address);
    let site = stage.run();
    site.event("connected");
    let run = stage.submit_once(&address);
    site.event("answering");
    server.kill();
    let (_server, _) = serve(text(&stage.path("fed")), &address.replace("localhost", "127.0.0.1"));
    site.event("resending");
    site.event("accepted");
    stage.counts_one_update(&run, &address);
    assert_eq!((stage.books(), stage.kept().len()), ((1, 1, 1), 1));
    // The server compares what came with what the ledger holds.
    site.kill();
    stage.run().event("connected");
}
