//! Tables as people have them: separators, decimals, gaps, words for classes, packed files, and rows that are divided by draw.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use learning::{DataSource, FileSource, Labels, SiteData, SourceSpec, load, load_measured, probe, survey};
use proptest::prelude::*;
use protocol::{DataSpec, Decline, EvaluationRecords, LearnError, Spec};

/// A plan for a table with the label `y` and the numeric column `x`.
fn plan(settings: &str) -> Spec {
    let target = if settings.contains("target") { "" } else { "target = { classes = 2 }\n" };
    let features = if settings.contains("features") { "" } else { "features = ['x']\n" };
    let text = format!(
        "model = 'linear'\ncohort_max = 4\ntraining = {{ batch_size = 8, optimizer = {{ adam = {{ learning_rate = 0.1 }} }} }}\n\
         [data.table]\nlabel = 'y'\n{target}{features}{settings}"
    );
    toml::from_str::<Spec>(&text).unwrap().checked().unwrap()
}

fn source(base: &Path, settings: &str) -> SourceSpec {
    let read: SourceSpec = toml::from_str(&format!("[csv]\ntrain = 'rows.csv'\n{settings}")).unwrap();
    read.resolved(base, &|_| None).unwrap()
}

fn read(bytes: impl AsRef<[u8]>, site: &str, settings: &str) -> Result<SiteData, LearnError> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("rows.csv"), bytes).unwrap();
    load(&source(folder.path(), site), &plan(settings).data)
}

fn refusal(bytes: impl AsRef<[u8]>, site: &str, settings: &str) -> String {
    let error = read(bytes, site, settings).unwrap_err();
    assert_eq!(error.reason, Decline::Data);
    let (before, after) = error.message.split_once('`').unwrap();
    format!("{before}`{}", &after[after.find("rows.csv").unwrap_or(0)..])
}

fn values(data: &SiteData) -> Vec<f32> {
    data.train.copied().features.to_vec()
}

fn labels(data: &SiteData) -> Vec<u32> {
    let Labels::Classes(classes) = data.train.copied().labels else { panic!("labels are classes") };
    classes
}

#[test]
fn a_row_that_is_for_nothing_is_an_error_with_line_and_value() {
    let rows = |split: &str| format!("split,x,y\ntrain,1,0\n{split},2,1\ntest,3,1\n");
    for split in ["Train", "valid", "", "TEST", "val", "0", "training"] {
        let message = format!(
            "`rows.csv` line 3: `split_column` `split` holds `{split}`; each row that is used says `train`, `validation` or `test`: \
             correct the cell, or leave the row out by `where`"
        );
        assert_eq!(refusal(rows(split), "split_column = 'split'", ""), message);
    }
    let data = read(rows(" train "), "split_column = 'split'", "").unwrap();
    assert_eq!((data.train.len(), data.test.unwrap().len()), (2, 1));
    // A row that is not used may say what it likes.
    let elsewhere = "split,x,y,site\ntrain,1,0,a\nold,2,1,b\n";
    assert_eq!(read(elsewhere, "split_column = 'split'\nwhere = { site = 'a' }", "").unwrap().train.len(), 1);
    assert!(refusal(elsewhere, "split_column = 'split'", "").contains("line 3"));
}

#[test]
fn a_survey_counts_rows_that_are_for_nothing() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("rows.csv"), "s,x,y\ntrain,1,0\nTrain,2,1\ntest,3,1\n,4,0\n").unwrap();
    let SourceSpec::Csv(csv) = source(folder.path(), "split_column = 's'") else { unreachable!() };
    let DataSpec::Table(table) = plan("").data else { unreachable!() };
    for spec in [None, Some(&table)] {
        let found = survey(&csv, spec).unwrap().remove(0);
        assert_eq!((found.rows, found.bad, found.divided), (4, 2, Some([1, 0, 1])));
        assert_eq!(found.faults.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [3, 5]);
    }
}

#[test]
fn where_records_are_protected_a_row_that_is_for_nothing_is_left_out() {
    let settings = "[privacy.examples]\nnoise_multiplier = 1\nnorm_max = 1\ndelta = 1e-5\nepsilon_max = 1\n";
    let folder = tempfile::tempdir().unwrap();
    for bad in ["Train,1,0,p\n", ",1,0,p\n", "train,1,0,\n"] {
        fs::write(folder.path().join("rows.csv"), format!("s,x,y,who\ntrain,1,0,q\n{bad}")).unwrap();
        let site = "split_column = 's'\nvalidation_fraction = 1e-9\ngroup_column = 'who'";
        let mut files = FileSource::new(source(folder.path(), site));
        assert_eq!(files.load(&plan(settings)).unwrap().train.len(), 1, "{bad:?}");
        assert!(files.load(&plan("")).is_err(), "{bad:?}: without a promise it is refused");
    }
}

#[test]
fn where_records_are_protected_a_row_with_an_open_quote_or_a_huge_cell_takes_no_other_row_with_it() {
    let settings = "[privacy.examples]\nnoise_multiplier = 1\nnorm_max = 1\ndelta = 1e-5\nepsilon_max = 1\n";
    let huge = format!("{},0", "9".repeat(3 << 20));
    for bad in ["\"2,0", "2,\"0", &huge, "2,0,7", "2"] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("rows.csv"), format!("x,y\n1,0\n{bad}\n3,1\n4,1\n")).unwrap();
        let mut files = FileSource::new(source(folder.path(), ""));
        let shown: String = bad.chars().take(9).collect();
        assert_eq!(values(&files.load(&plan(settings)).unwrap()), [1.0, 3.0, 4.0], "{shown}");
        assert!(files.load(&plan("")).is_err(), "{shown}: without a promise it is refused");
    }
}

#[test]
fn the_same_table_is_read_however_its_cells_are_separated() {
    for text in [
        "x,z,y\n1,a,0\n2.5,b,1\n",
        "x;z;y\n1;a;0\n2.5;b;1\n",
        "x\tz\ty\n1\ta\t0\n2.5\tb\t1\n",
        "x|z|y\n1|a|0\n2.5|b|1\n",
        "\u{feff}x;z;y\r\n1;a;0\r\n2.5;b;1\r\n",
        "\"x\";\"z, or\nless\";\"y\"\n1;\"a;b\";0\n2.5;\"c\nd\";1\n",
        "\r\n\r\nx;z;y\r\n1;a;0\r\n\r\n2.5;b;1",
        "sep=;\nx;z;y\n1;a;0\n2.5;b;1\n",
        "x;z;y\r1;a;0\r2.5;b;1\r",
    ] {
        let data = read(text, "", "").unwrap();
        assert_eq!((values(&data), labels(&data)), (vec![1.0, 2.5], vec![0, 1]), "{text:?}");
    }
    let told = "x;y,z\n1;0,5\n";
    assert!(refusal(told, "", "").contains("has no column `x`; its columns are `x;y`, `z`"));
    assert_eq!(labels(&read("x;y\n1;0\n", "separator = ';'", "").unwrap()), [0]);
    assert_eq!(labels(&read("x\ty\n1\t0\n", "separator = 'tab'", "").unwrap()), [0]);
    assert!(refusal("x;y\n1;0\n", "separator = ','", "").contains("its columns are `x;y`"));
    let mixed = refusal("x;z;y\n1;2;0\n3,4,1\n", "", "");
    assert!(
        mixed.starts_with("`rows.csv` line 3 has 1 cells where the header has 3, separated by `;`"),
        "{mixed}"
    );
    let after_sep = refusal("sep=;\nx;y\n1;0\nb;1\n", "", "");
    assert!(after_sep.starts_with("`rows.csv` line 4: column `x`"), "{after_sep}");
    for text in ["x;y\r\n1;0\r\n\r\n\r\nb;1\r\n", "x;y\n1;\"0\n\n\"\nb;1\n", "x;y\r1;0\r\r\rb;1\r"] {
        let said = refusal(text, "", "target = 'real'");
        assert!(said.starts_with("`rows.csv` line 5: column `x` holds `b`"), "{text:?}: {said}");
    }
    let latin = refusal(b"x,name,y\r\n1,a,0\r\n2,M\xfcller,1\r\n", "", "");
    assert!(latin.starts_with("`rows.csv` line 3 has bytes that are no text in UTF-8"), "{latin}");
    assert!(refusal("x:y\n1:0\n", "", "").contains("if something else than"));
    assert!(refusal("1;2;0\n3;4;1\n", "", "").ends_with("its first line should name the columns"));
}

#[test]
fn decimals_are_written_as_the_site_says_and_never_guessed() {
    let german = "x;y\n1,5;0\n-0,25;1\n7;0\n";
    assert_eq!(values(&read(german, "decimal = ','", "").unwrap()), [1.5, -0.25, 7.0]);
    let real = read("x;y\n1,5;2,5\n", "decimal = ','", "target = 'real'").unwrap();
    assert_eq!(real.train.copied().labels, Labels::Real(vec![2.5]));
    assert_eq!(values(&read("x,y\n\"1,5\",0\n", "decimal = ','", "").unwrap()), [1.5]);
    let without = refusal(german, "", "");
    assert!(
        without.contains("line 2: column `x` holds `1,5`") && without.contains("set `decimal = \",\"`"),
        "{without}"
    );
    let split = refusal("x,y\n1,5,0\n", "", "");
    assert!(split.starts_with("`rows.csv` line 2 has 3 cells where the header has 2"), "{split}");
    for (cell, site) in [("1.234,5", "decimal = ','"), ("1,234.5", ""), ("1 234", ""), ("1'234", "")] {
        let said = refusal(format!("x;y\n{cell};0\n"), site, "");
        assert!(
            said.contains(&format!("holds `{cell}`")) && said.ends_with("thousands separators"),
            "{said}"
        );
    }
    assert_eq!(values(&read("x,y\n-0,0\n", "", "").unwrap()), [0.0]);
}

#[test]
fn gaps_are_spelt_in_many_ways_and_flags_are_numbers() {
    let words = ["", "?", "NA", "nan", "N/A", "n/a", "NULL", "null", "None", "#N/A", "<NA>"];
    for word in words {
        let text = format!("x,sex,y\n{word},f,0\n1,m,1\n2,{word},1\n3,f,{word}\n");
        let category = "categorical = [{ column = 'sex', values = ['f', 'm'] }]";
        let kept = read(&text, "", &format!("{category}\nmissing = 'drop'")).unwrap();
        assert_eq!(values(&kept), [1.0, 0.0, 1.0], "{word:?}");
        let refused = refusal(&text, "", "");
        assert!(
            refused.contains(&format!("line 2: column `x` holds `{word}`, which counts as missing")),
            "{refused}"
        );
        let label = refusal(format!("x,y\n1,{word}\n"), "", "missing = 'mean'");
        assert!(label.contains("label column `y`") && label.contains("counts as missing"), "{label}");
    }
    let listed = "categorical = [{ column = 'sex', values = ['None', 'm'] }]";
    assert_eq!(values(&read("x,sex,y\n1,None,0\n", "", listed).unwrap()), [1.0, 1.0, 0.0]);
    let flags = read("x,y\nTrue,False\nfalse,TRUE\n", "", "").unwrap();
    assert_eq!((values(&flags), labels(&flags)), (vec![1.0, 0.0], vec![0, 1]));
}

#[test]
fn the_plan_says_what_classes_are_called_and_in_which_order() {
    for (classes, cells, found) in [
        ("['no', 'yes']", vec!["yes", "no", "yes"], vec![1, 0, 1]),
        ("['yes', 'no']", vec!["yes", "no", "yes"], vec![0, 1, 0]),
        ("[1, 2]", vec!["1", "2.0", "2"], vec![0, 1, 1]),
        ("[-1, 1]", vec!["1", "-1", "-1.0"], vec![1, 0, 0]),
        ("[0, 1, 5]", vec!["5", "-0", "0"], vec![2, 0, 0]),
        ("[false, true]", vec!["True", "FALSE"], vec![1, 0]),
        ("['True', 'False']", vec!["true", "False"], vec![0, 1]),
        ("['none', 'mild', 'NA']", vec!["NA", "none", "mild"], vec![2, 0, 1]),
        ("['1', '2', 'unknown']", vec!["unknown", "1", "2"], vec![2, 0, 1]),
    ] {
        let rows: String = cells.iter().map(|cell| format!("1,{cell}\n")).collect();
        let data = read(format!("x,y\n{rows}"), "", &format!("target = {{ classes = {classes} }}")).unwrap();
        assert_eq!(labels(&data), found, "{classes}");
    }
    let german = read("x;y\n1,5;2,0\n", "decimal = ','", "target = { classes = [1, 2] }");
    assert_eq!(labels(&german.unwrap()), [1]);
}

#[test]
fn a_label_that_the_plan_does_not_list_is_an_error_with_line_and_value() {
    let two = "target = { classes = ['no', 'yes'] }";
    let message =
        "`rows.csv` line 3: label column `y` holds `Yes`; the plan wants one of the classes `no`, `yes`";
    assert_eq!(refusal("x,y\n1,no\n2,Yes\n", "", two), message);
    assert!(
        refusal("x,y\n1,3\n", "", "target = { classes = [1, 2] }").ends_with("one of the classes `1`, `2`")
    );
    assert!(refusal("x,y\n1,True\n", "", "target = { classes = [0, 1] }").contains("holds `True`"));
    let counted = refusal("x,y\n1,yes\n", "", "");
    assert!(
        counted.ends_with("in one order for all sites: `target = { classes = [\"no\", \"yes\"] }`"),
        "{counted}"
    );
    // A class that no row of a site has keeps its number.
    assert_eq!(labels(&read("x,y\n1,yes\n", "", two).unwrap()), [1]);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("rows.csv"), "x,y\n1,yes\n2,maybe\n3,yes\n").unwrap();
    let (SourceSpec::Csv(csv), DataSpec::Table(table)) = (source(folder.path(), ""), plan(two).data) else {
        unreachable!()
    };
    let found = survey(&csv, Some(&table)).unwrap().remove(0);
    let label = found.columns.last().unwrap();
    assert_eq!(label.classes, [("no".to_owned(), 0), ("yes".to_owned(), 2)]);
    assert_eq!((label.words, label.first_word, found.bad), (1, Some(3), 1));
}

fn packed(text: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(text).unwrap();
    packed.finish().unwrap()
}

#[test]
fn what_a_file_is_shows_in_its_first_bytes_and_not_in_its_name() {
    let plain = "x;y\n1;0\n";
    assert_eq!(labels(&read(packed(plain.as_bytes()), "", "").unwrap()), [0], "gzip without .gz");
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("rows.csv.gz"), plain).unwrap();
    let named: SourceSpec = toml::from_str("csv = { train = 'rows.csv.gz' }").unwrap();
    let named = named.resolved(folder.path(), &|_| None).unwrap();
    assert_eq!(labels(&load(&named, &plan("").data).unwrap()), [0], ".gz without gzip");
    for (bytes, what) in [
        (b"PK\x03\x04rest".to_vec(), "a ZIP archive, as .npz, .xlsx"),
        (packed(b"PK\x03\x04rest"), "a ZIP archive"),
        (b"PAR1\x15....".to_vec(), "a Parquet file"),
        (b"\xff\xfex\0,\0y\0".to_vec(), "text in UTF-16"),
        (
            b"\x93NUMPY\x01\0v\0".to_vec(),
            "a NumPy array and no table: name samples and labels under [data.numpy]",
        ),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1".to_vec(), "an old Excel"),
        (packed(&packed(plain.as_bytes())), "packed by gzip twice"),
        (b"x,\0y\n1,0\n".to_vec(), "bytes that are in no text"),
    ] {
        let said = refusal(bytes, "", "");
        assert!(said.starts_with("cannot read `rows.csv`: it ") && said.contains(what), "{said}");
        assert!(!said.contains("who may read it"), "{said}");
    }
    assert!(read("", "", "").unwrap_err().message.contains("has no column"));
}

#[test]
fn names_of_columns_that_begin_like_other_formats_are_names() {
    for header in ["PAR1;x;y", "SQLite;x;y", "PK;x;y", "sep;x;y"] {
        assert_eq!(values(&read(format!("{header}\n7;1;0\n"), "", "").unwrap()), [1.0], "{header}");
    }
    // A byte that no text has is that row's own matter.
    assert!(refusal("x,y\n1,0\n\0,1\n", "", "").starts_with("`rows.csv` line 3: column `x`"));
}

#[test]
fn an_archive_of_arrays_says_how_to_take_them_out() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["x.npz", "y.npz"] {
        fs::write(folder.path().join(name), b"PK\x03\x04rest").unwrap();
    }
    let read: SourceSpec = toml::from_str("numpy = { train_x = 'x.npz', train_y = 'y.npz' }").unwrap();
    let tensor = toml::from_str("[tensor]\nshape = [2]\ntarget = { classes = 2 }").unwrap();
    let error = load(&read.resolved(folder.path(), &|_| None).unwrap(), &tensor).unwrap_err().message;
    assert!(
        error.contains("x.npz` is not in .npy format: it is a ZIP archive") && error.contains("`numpy.save`"),
        "{error}"
    );
}

#[test]
fn a_file_that_is_no_table_is_told_before_a_site_is_made_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("README.md");
    let probed = |text: &str| {
        fs::write(&path, text).unwrap();
        probe(&path).map_err(|error| error.message)
    };
    for table in ["a,b\n1,2\n", "a;b\n1,5;2\n", "a\tb\n", "\u{feff}a,b\r\n\"x\ny\",2\r\n"] {
        probed(table).unwrap();
    }
    for (text, said) in [
        ("# Title\n\nSome words, and more, here.\n", "names no two columns"),
        ("One, two, three.\n\nSome words.\n", "line 3 has 1 cells where the header has 3"),
        ("", "names no two columns"),
        ("1,2,3\n4,5,6\n", "holds numbers and should name the columns"),
        ("PK\u{3}\u{4}", "a ZIP archive"),
    ] {
        let error = probed(text).unwrap_err();
        assert!(error.contains(said) && error.contains("README.md"), "{error}");
    }
}

fn table(rows: usize) -> String {
    let rows: String = (0..rows).map(|row| format!("p{},{row},{}\n", row / 3, row % 2)).collect();
    format!("who,x,y\n{rows}")
}

fn parts(text: &str, site: &str) -> [Vec<f32>; 3] {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("rows.csv"), text).unwrap();
    let of = |records| load_measured(&source(folder.path(), site), &plan("").data, records).unwrap();
    let measured = |records| of(records).test.map_or_else(Vec::new, |part| part.copied().features.to_vec());
    let train = values(&of(EvaluationRecords::Test));
    [train, measured(EvaluationRecords::Validation), measured(EvaluationRecords::Test)]
}

#[test]
fn every_row_is_drawn_for_one_thing_and_a_patient_is_on_one_side() {
    let text = table(600);
    let site = "test_fraction = 0.25\nvalidation_fraction = 0.15\ngroup_column = 'who'\nsplit_seed = 5";
    let drawn = parts(&text, site);
    let mut all: Vec<f32> = drawn.concat();
    all.sort_by(f32::total_cmp);
    assert_eq!(all, (0..600u16).map(f32::from).collect::<Vec<_>>());
    for (part, share) in drawn.iter().zip([0.6, 0.15, 0.25]) {
        assert!((part.len() as f64 / 600.0 - share).abs() < 0.08, "{} of {share}", part.len());
        let patients =
            |rows: &[f32]| rows.iter().map(|row| *row as u32 / 3).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(part.len(), 3 * patients(part).len(), "no patient is divided");
    }
    // Other rows, another order and another way of writing them draw each row as before.
    let mut rows: Vec<&str> = text.lines().skip(1).collect();
    rows.reverse();
    let other = format!("who;x;y\nnew;1000;0\n{}\n", rows[..300].join("\n").replace(',', ";"));
    for (part, before) in parts(&other, site).iter().zip(&drawn) {
        assert!(part.iter().all(|row| *row == 1000.0 || before.contains(row)));
    }
    assert_ne!(parts(&text, &site.replace('5', "6")), drawn);
}

#[test]
fn validation_rows_come_from_a_column_a_file_or_a_draw_and_are_never_trained_on() {
    let text = "s,x,y\ntrain,1,0\nvalidation,2,1\ntest,3,1\n";
    assert_eq!(parts(text, "split_column = 's'"), [vec![1.0], vec![2.0], vec![3.0]]);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("rows.csv"), "x,y\n1,0\n").unwrap();
    fs::write(folder.path().join("valid.csv"), "x,y\n2,0\n").unwrap();
    let two = source(folder.path(), "validation = 'valid.csv'");
    let of = |records| load_measured(&two, &plan("").data, records).unwrap().test;
    assert_eq!(of(EvaluationRecords::Validation).unwrap().copied().features.to_vec(), [2.0]);
    assert!(of(EvaluationRecords::Test).is_none());
    let rows: String =
        (0..90).map(|row| format!("{},{row},0\n", if row < 60 { "train" } else { "test" })).collect();
    let [train, validation, test] =
        parts(&format!("s,x,y\n{rows}"), "split_column = 's'\nvalidation_fraction = 0.3");
    assert_eq!(test, (60..90u8).map(f32::from).collect::<Vec<_>>());
    assert!(train.len() + validation.len() == 60 && validation.len() > 5 && !train.is_empty());
    let both =
        refusal("s,x,y\ntrain,1,0\nvalidation,2,1\n", "split_column = 's'\nvalidation_fraction = 0.3", "");
    assert!(both.contains("holds `validation`; each row that is used says `train` or `test`"), "{both}");
}

#[test]
fn a_draw_that_leaves_nothing_says_so() {
    let few = "x,y\n1,0\n2,1\n3,0\n";
    let message = "`rows.csv`: `test_fraction` draws none of the 3 rows that are used; give a larger share, another `split_seed`, or \
                   leave it out";
    assert_eq!(refusal(few, "test_fraction = 0.000001", ""), message);
    assert!(refusal(few, "validation_fraction = 0.000001", "").contains("`validation_fraction` draws none"));
    let all = refusal(few, "test_fraction = 0.999999", "");
    assert!(all.contains("no rows to use: all 3 were drawn for testing or validation"), "{all}");
    let group = refusal("who,x,y\nNULL,1,0\n", "test_fraction = 0.5\ngroup_column = 'who'", "");
    assert!(
        group.starts_with("`rows.csv` line 2: `group_column` `who` holds `NULL`, which counts as missing"),
        "{group}"
    );
    assert!(refusal(few, "test_fraction = 0.5\ngroup_column = 'who'", "").contains("has no column `who`"));
}

#[test]
fn a_plan_that_evaluates_on_validation_records_never_reads_the_test_records_for_it() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("rows.csv"), "s,x,y\ntrain,1,0\nvalidation,2,1\ntest,3,1\n").unwrap();
    let mut files = FileSource::new(source(folder.path(), "split_column = 's'"));
    let measured = |files: &mut FileSource, records| {
        let spec = Spec { evaluation_records: records, ..plan("") };
        files.load(&spec).unwrap().test.unwrap().copied().features.to_vec()
    };
    assert_eq!(measured(&mut files, EvaluationRecords::Test), [3.0]);
    assert_eq!(measured(&mut files, EvaluationRecords::Validation), [2.0]);
    assert_eq!(measured(&mut files, EvaluationRecords::Test), [3.0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A table of numbers reads the same however it is written.
    #[test]
    fn a_table_reads_the_same_in_every_dialect(
        rows in prop::collection::vec((-1e6f64..1e6, 0u8..2), 1..20),
        separator in prop::sample::select(vec![",", ";", "\t", "|"]),
        comma in any::<bool>(),
        end in prop::sample::select(vec!["\n", "\r\n"]),
        bom in any::<bool>(),
        quoted in any::<bool>(),
    ) {
        let cell = |value: f64| {
            let text = if comma { value.to_string().replace('.', ",") } else { value.to_string() };
            if quoted || comma { format!("\"{text}\"") } else { text }
        };
        let mut text = if bom { "\u{feff}".to_owned() } else { String::new() };
        text.push_str(&format!("x{separator}y{end}"));
        for (x, y) in &rows {
            text.push_str(&format!("{}{separator}{y}{end}", cell(*x)));
        }
        let data = read(&text, if comma { "decimal = ','" } else { "" }, "").unwrap();
        prop_assert_eq!(values(&data), rows.iter().map(|(x, _)| *x as f32).collect::<Vec<_>>());
    }

    /// Whatever bytes a file has, reading it ends with records or a message.
    #[test]
    fn no_bytes_break_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read(&bytes, "test_fraction = 0.3", "");
        let _ = read([b"x;y\n", &bytes[..]].concat(), "decimal = ','", "target = { classes = ['a', 'b'] }");
    }
}
