//! A learner that does what a test tells it by `BEHAVIOUR`: well, or badly in one way, always or in one round (`dies@2`). It follows
//! docs/learner.md and shares no code with the crate that it tests.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a program of tests")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

struct Line {
    from: Box<dyn Read>,
    to: Box<dyn Write>,
}

impl Line {
    fn open() -> (Self, Option<String>) {
        let place = std::env::var("CONSORTIA_LEARNER").unwrap();
        if place == "fd:0" {
            let both = File::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
            let other = both.try_clone().unwrap();
            return (Self { from: Box::new(both), to: Box::new(other) }, None);
        }
        let file: Value = serde_json::from_slice(&std::fs::read(place).unwrap()).unwrap();
        let (address, token) = (file["address"].as_str().unwrap(), file["token"].as_str().unwrap());
        let line = match address.split_once(':').unwrap() {
            ("unix", path) => {
                let stream = UnixStream::connect(path).unwrap();
                Self { from: Box::new(stream.try_clone().unwrap()), to: Box::new(stream) }
            }
            (_, address) => {
                let stream = TcpStream::connect(address).unwrap();
                Self { from: Box::new(stream.try_clone().unwrap()), to: Box::new(stream) }
            }
        };
        (line, Some(token.to_owned()))
    }

    fn say(&mut self, header: &Value, body: &[f32]) {
        let header = header.to_string();
        let body: Vec<u8> = body.iter().flat_map(|value| value.to_le_bytes()).collect();
        let mut frame = (header.len() as u32).to_le_bytes().to_vec();
        frame.extend((body.len() as u64).to_le_bytes());
        frame.extend(header.bytes());
        frame.extend(body);
        self.to.write_all(&frame).unwrap();
        self.to.flush().unwrap();
    }

    /// The next frame; `None` when the agent is gone.
    fn hear(&mut self) -> Option<(Value, Vec<f32>)> {
        let (mut header, mut body) = ([0; 4], [0; 8]);
        self.from.read_exact(&mut header).ok()?;
        self.from.read_exact(&mut body).unwrap();
        let mut text = vec![0; u32::from_le_bytes(header) as usize];
        let mut values = vec![0; u64::from_le_bytes(body) as usize];
        self.from.read_exact(&mut text).unwrap();
        self.from.read_exact(&mut values).unwrap();
        let values = values.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap()));
        Some((serde_json::from_slice(&text).unwrap(), values.collect()))
    }
}

pub(crate) fn main() {
    let told = std::env::var("BEHAVIOUR").unwrap_or_default();
    let (behaviour, in_round) =
        told.split_once('@').map_or((&*told, None), |(name, round)| (name, Some(round)));
    let is = |name: &str| behaviour == name;
    println!("this is a line of standard output");
    if std::env::var_os("TELLS_ITS_NUMBER").is_some() {
        // Whole, or not there.
        std::fs::write("number.new", std::process::id().to_string()).unwrap();
        std::fs::rename("number.new", "number").unwrap();
    }
    if is("hangs from its start on") {
        std::thread::sleep(Duration::from_secs(600));
    }
    if is("exits at once") {
        std::process::exit(3);
    }
    let (mut line, token) = Line::open();
    if is("prints into the channel") {
        line.to.write_all(b"epoch 1, loss 0.25\nepoch 2, loss 0.125\n").unwrap();
    }
    let token = if is("has a wrong token") { Some("0".repeat(32)) } else { token };
    let versions = if is("is of another release") { json!([7]) } else { json!([1, 2]) };
    line.say(&json!({"type": "hello", "versions": versions, "software": "a player", "token": token}), &[]);
    let mut tensors = Vec::new();
    while let Some((asked, values)) = line.hear() {
        let id = asked["id"].clone();
        match asked["type"].as_str().unwrap() {
            "welcome" => line.say(&json!({"type": "news of a later version", "deep": [{}]}), &[1.0; 3]),
            "refused" => {
                eprintln!("refused: {}", asked["reason"]);
                std::process::exit(1);
            }
            "prepare" => {
                // Its own order, and tensors of its own between the plan's.
                tensors = asked["tensors"].as_array().unwrap().clone();
                tensors.reverse();
                if is("keeps a head") {
                    tensors.insert(1, json!({"name": "head", "shape": [2], "personal": true}));
                }
                if is("changes its head") {
                    let size = if std::fs::metadata("began").is_ok() { 3 } else { 2 };
                    std::fs::write("began", "").unwrap();
                    tensors.insert(1, json!({"name": "head", "shape": [size], "personal": true}));
                }
                if is("keeps too much") {
                    tensors.push(json!({"name": "p", "shape": [1u64 << 46], "personal": true}));
                }
                if is("has another model") {
                    tensors[0]["shape"] = json!([5]);
                }
                line.say(&json!({"type": "result", "id": id, "tensors": tensors}), &[]);
            }
            "initialise" => line.say(&json!({"type": "result", "id": id}), &[0.5, -0.5]),
            "train" => {
                let is_due = in_round.is_none_or(|round| asked["round"].as_u64() == round.parse().ok());
                train(if is_due { behaviour } else { "learns" }, &mut line, &asked, values, &tensors);
            }
            "evaluate" => {
                let sum: f32 = values.iter().sum();
                let metrics = json!({"loss": sum, "accuracy": 0.75});
                line.say(&json!({"type": "result", "id": id, "examples": 8, "metrics": metrics}), &[]);
            }
            "end" if !is("does not end") => return,
            "end" => std::thread::sleep(Duration::from_secs(60)),
            _ => {}
        }
    }
}

/// Moves each value towards what the records of its client say, with some noise that follows from the seed. In a simulation the client is
/// told by its index, at a site by `RECORDS`. It takes `DELAY_MS`.
fn learn(line: &mut Line, asked: &Value, mut values: Vec<f32>) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    std::thread::sleep(Duration::from_millis(number("DELAY_MS").unwrap_or(0)));
    let records = number("RECORDS").or_else(|| asked["client"]["index"].as_u64()).unwrap();
    let mut state = asked["seed"].as_u64().unwrap();
    let mut off = 0.0;
    for (place, value) in (0u16..).zip(&mut values) {
        // Knuth's generator MMIX, of which the upper bits are good.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let noise = f32::from((state >> 48) as u16) / 65536.0 - 0.5;
        let wanted = records as f32 + f32::from(place) / 8.0;
        off += f64::from((wanted - *value).abs());
        *value += 0.5 * (wanted - *value) + 0.01 * noise;
    }
    let metrics = json!({"loss": off, "accuracy": 0.5});
    let examples = 4 + records;
    line.say(
        &json!({"type": "result", "id": asked["id"], "examples": examples, "metrics": metrics}),
        &values,
    );
}

/// Adds to each value the number of its tensor in this learner's order, from 1, and answers by it, well or badly.
fn train(behaviour: &str, line: &mut Line, asked: &Value, mut values: Vec<f32>, tensors: &[Value]) {
    let id = asked["id"].clone();
    let mu = if behaviour == "adds no term" { Value::Null } else { asked["proximal_mu"].clone() };
    let result = |metrics: Value| json!({"type": "result", "id": id, "examples": 4, "metrics": metrics, "proximal_mu": mu});
    let fine = json!({"loss": asked["seed"].as_u64().unwrap() as f64, "accuracy": 1.0});
    if behaviour == "dies unheard" {
        std::process::exit(9);
    }
    line.say(&json!({"type": "accepted", "id": id}), &[]);
    if behaviour == "learns" {
        return learn(line, asked, values);
    }
    println!("patient Miller is 81");
    add(&mut values, tensors);
    if broke_off(behaviour, line) {
        return;
    }
    match behaviour {
        "heeds a stop" => {
            // The next frame is the stop.
            let (stop, _) = line.hear().unwrap();
            assert!(stop["type"] == "stop" && stop["id"] == id, "{stop}");
            line.say(&json!({"type": "failed", "id": id, "error": "stopped"}), &[]);
        }
        "fails" => line.say(
            &json!({"type": "failed", "id": id, "error": "no patients", "details": "Traceback:\n  line 7"}),
            &[],
        ),
        "sends no number" => {
            values[2] = f32::NAN;
            line.say(&result(fine), &values);
        }
        "sends too few" => line.say(&result(fine), &values[1..]),
        "sends too many" => line.say(&result(fine), &vec![0.0; values.len() + 1000]),
        "has no loss" => line.say(&result(json!({"accuracy": 1.0})), &values),
        "has a strange metric" => line.say(&result(json!({"loss": 1.0, "temperature": 2.0})), &values),
        "is too accurate" => line.say(&result(json!({"loss": 1.0, "accuracy": 1.5})), &values),
        "answers another request" => {
            line.say(&json!({"type": "result", "id": 77, "examples": 1, "metrics": {}}), &values);
        }
        "prints much" => {
            (0..20_000).for_each(|number| println!("line {number}"));
            line.say(&result(fine), &values);
        }
        "prints without a newline" => {
            print!("{}", "x".repeat(1 << 20));
            line.say(&result(fine), &values);
        }
        "answers twice" => {
            line.say(&result(fine.clone()), &values);
            line.say(&result(fine), &values);
        }
        "fails and ends" => {
            line.say(&json!({"type": "failed", "id": id, "error": "no patients"}), &[]);
            std::process::exit(1);
        }
        "tells its surroundings" => {
            tell_surroundings();
            line.say(&result(fine), &values);
        }
        _ => line.say(&result(fine), &values),
    }
}

/// Adds to each value the number of its tensor.
fn add(values: &mut [f32], tensors: &[Value]) {
    let mut at = 0;
    for (number, tensor) in (1u8..).zip(tensors) {
        let len: u64 =
            tensor["shape"].as_array().unwrap().iter().map(|side| side.as_u64().unwrap()).product();
        for value in &mut values[at..at + len as usize] {
            *value += f32::from(number);
        }
        at += len as usize;
    }
}

/// Does what gives no answer, if that is the behaviour.
fn broke_off(behaviour: &str, line: &mut Line) -> bool {
    match behaviour {
        "dies" | "changes its head" => std::process::exit(9),
        "dies once" if std::fs::write("died", "").is_ok() && std::fs::metadata("again").is_err() => {
            std::fs::write("again", "").unwrap();
            std::process::exit(9);
        }
        "hangs" => std::thread::sleep(Duration::from_secs(600)),
        "works for ever" => loop {
            line.say(&json!({"type": "alive"}), &[]);
            std::thread::sleep(Duration::from_millis(100));
        },
        "says a huge length" => line.to.write_all(&[0xff; 12]).unwrap(),
        "says a huge body" => {
            line.to.write_all(&[4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0]).unwrap();
        }
        "sends half a frame" => {
            line.to.write_all(&[40, 0, 0, 0, 0, 0]).unwrap();
            line.to.flush().unwrap();
            std::thread::sleep(Duration::from_secs(60));
        }
        "sends rubbish" => line.to.write_all(&[0x55; 4096]).unwrap(),
        "ends at ease" => std::process::exit(0),
        "leaves a child that holds its output" => {
            let child =
                std::process::Command::new("sleep").arg("600").stdin(std::process::Stdio::null()).spawn();
            std::fs::write("child", child.unwrap().id().to_string()).unwrap();
            std::process::exit(0);
        }
        _ => return false,
    }
    true
}

/// Writes down what there is around it.
fn tell_surroundings() {
    let names: Vec<String> = std::env::vars().map(|(name, value)| format!("{name}={value}")).collect();
    let open: Vec<String> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter_map(|entry| Some((entry.file_name(), std::fs::read_link(entry.path()).ok()?)))
        .map(|(number, link)| format!("{} {}", number.to_string_lossy(), link.display()))
        .collect();
    let here = std::env::current_dir().unwrap();
    let beside: Vec<_> = std::fs::read_dir(".")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let told = json!({"environment": names, "open": open, "folder": here, "beside": beside});
    std::fs::write("surroundings.json", told.to_string()).unwrap();
}
