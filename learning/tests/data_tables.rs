//! CSV tables: what is read, what is refused and in which words, and how cells are prepared.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use learning::{
    DataSource, Dataset, FileSource, IdSource, Labels, SiteData, SourceSpec, load, load_with_ids,
};
use protocol::{DataSpec, Decline, LearnError, Missing, Spec, Standardiser};
use tempfile::TempDir;

const ROWS: &str = "\
site,split,age,chol,cp,label
a, train, 50, 200, 1, 0
a, train, 60, ?, 2, 1
a, test, 70, 240, 9, 1
b, train, 40, NA, , 0
";
const PLAN: &str = "features = ['age', 'chol']";
const SPLIT: &str = "csv = { train = 'rows.csv', split_column = 'split' }";

/// A plan for a table with a column `label` of two classes and these further settings.
fn plan(settings: &str) -> Spec {
    let settings = if settings.contains("target") {
        settings.to_owned()
    } else {
        format!("target = {{ classes = 2 }}\n{settings}")
    };
    let text = format!(
        "model = 'linear'\ncohort_max = 4\ntraining = {{ batch_size = 8, optimizer = {{ adam = {{ learning_rate = 0.1 }} }} }}\n\
         [data.table]\nlabel = 'label'\n{settings}"
    );
    toml::from_str::<Spec>(&text).unwrap().checked().unwrap()
}

fn folder(rows: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("rows.csv"), rows).unwrap();
    folder
}

fn source(base: &Path, typed: &str) -> SourceSpec {
    let source: SourceSpec = toml::from_str(typed).unwrap();
    source.resolved(base, &|_| None).unwrap()
}

fn read(rows: &str, typed: &str, settings: &str) -> Result<SiteData, LearnError> {
    let folder = folder(rows);
    load(&source(folder.path(), typed), &plan(settings).data)
}

/// The message of a refusal, with the folder's name left out.
fn refusal(rows: &str, typed: &str, settings: &str) -> String {
    let folder = folder(rows);
    let error = load(&source(folder.path(), typed), &plan(settings).data).unwrap_err();
    assert_eq!(error.reason, Decline::Data);
    error.message.replace(&format!("{}/", folder.path().display()), "")
}

fn prepared(rows: &str, settings: &str, standardiser: Option<&Standardiser>) -> Result<Vec<f32>, LearnError> {
    let data = read(rows, "csv = { train = 'rows.csv' }", settings).unwrap();
    Ok(data.prepared(&plan(settings), standardiser)?.train.copied().features.to_vec())
}

fn heart() -> (SourceSpec, DataSpec) {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data");
    let typed = "csv = { train = 'heart_disease.csv', split_column = 'split' }";
    let columns = "features = ['age', 'sex', 'trestbps', 'chol', 'fbs', 'thalach', 'exang', 'oldpeak', 'cp_2', 'cp_3', \
                   'cp_4', 'restecg_1', 'restecg_2']";
    (source(&base, typed), plan(columns).data)
}

#[test]
fn numeric_columns_come_in_the_plans_order_and_one_hot_ones_after_them() {
    let settings = "features = ['chol', 'age']\ncategorical = [{ column = 'cp', values = ['2', '1'] }]\nmissing = 'mean'";
    let data = read(ROWS, SPLIT, settings).unwrap();
    let train = &data.train.dataset;
    assert_eq!((train.shape.as_slice(), train.len()), (&[4][..], 3));
    assert_eq!(train.sample(0), [200.0, 50.0, 0.0, 1.0]);
    assert!(train.sample(1)[0].is_nan() && train.sample(2)[0].is_nan());
    assert_eq!(
        (&train.sample(1)[1..], &train.sample(2)[1..]),
        (&[60.0, 1.0, 0.0][..], &[40.0, 0.0, 0.0][..])
    );
    assert_eq!(train.labels, Labels::Classes(vec![0, 1, 0]));
    let test = data.test.unwrap();
    assert_eq!(test.copied().features, [240.0, 70.0, 0.0, 0.0], "an unknown value is all zeros");
}

#[test]
fn rows_can_be_filtered_and_test_rows_come_from_a_file_of_their_own() {
    let folder = folder(ROWS);
    fs::write(folder.path().join("test.csv"), "age,site,label\n1,a,0\n2,b,1\n").unwrap();
    let both =
        source(folder.path(), "csv = { train = 'rows.csv', test = 'test.csv', where = { site = 'b' } }");
    let data = load(&both, &plan("features = ['age']").data).unwrap();
    assert_eq!(data.train.copied().features, [40.0]);
    assert_eq!(data.test.unwrap().copied().features, [2.0]);
}

#[test]
fn a_packed_file_reads_like_a_plain_one() {
    let folder = folder("");
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(ROWS.as_bytes()).unwrap();
    fs::write(folder.path().join("rows.csv.gz"), packed.finish().unwrap()).unwrap();
    let plan = plan("features = ['age']");
    let data = load(&source(folder.path(), "csv = { train = 'rows.csv.gz' }"), &plan.data).unwrap();
    assert_eq!(data.train.copied().features, [50.0, 60.0, 70.0, 40.0]);
}

#[test]
fn missing_cells_are_refused_dropped_or_filled_as_the_plan_says() {
    let typed = "csv = { train = 'rows.csv' }";
    let message = "`rows.csv` line 3: column `chol` holds `?`, which counts as missing; fill it, or let the plan's `missing` \
                   drop the row or fill it";
    assert_eq!(refusal(ROWS, typed, PLAN), message);
    let kept =
        |missing: &str| read(ROWS, typed, &format!("{PLAN}\nmissing = {missing}")).unwrap().train.copied();
    assert_eq!(kept("'drop'").features, [50.0, 200.0, 70.0, 240.0]);
    assert_eq!(kept("'drop'").labels, Labels::Classes(vec![0, 1]));
    assert_eq!(kept("{ constant = -1.0 }").features, [50.0, 200.0, 60.0, -1.0, 70.0, 240.0, 40.0, -1.0]);
    let category = "categorical = [{ column = 'cp', values = ['1'] }]";
    let message = "`rows.csv` line 5: column `cp` holds ``, which counts as missing; fill it, or let the plan's `missing` \
                   drop the row or fill it";
    assert_eq!(refusal(ROWS, typed, category), message);
    assert_eq!(read(ROWS, typed, &format!("{category}\nmissing = 'drop'")).unwrap().train.len(), 3);
    let listed = "categorical = [{ column = 'chol', values = ['?', 'NA'] }]";
    let listed = read(ROWS, typed, listed).unwrap().train.copied();
    assert_eq!(listed.features.to_vec()[2..4], [1.0, 0.0], "a value that the plan lists is not missing");
}

#[test]
fn a_label_is_never_made_up() {
    let typed = "csv = { train = 'rows.csv' }";
    let rows = "age,label\n1,\n2,1\n";
    let message = "`rows.csv` line 2: label column `label` holds ``, which counts as missing; fill it, or let the plan's \
                   `missing` drop the row";
    assert_eq!(refusal(rows, typed, "features = ['age']\nmissing = 'mean'"), message);
    let dropped = read(rows, typed, "features = ['age']\nmissing = 'drop'").unwrap().train.copied();
    assert_eq!((dropped.features.to_vec(), dropped.labels), (vec![2.0], Labels::Classes(vec![1])));
}

#[test]
fn labels_are_classes_in_range_or_real_numbers() {
    let typed = "csv = { train = 'rows.csv' }";
    let read = |label: &str, target: &str| {
        read(&format!("age,label\n1,{label}\n"), typed, &format!("features = ['age']\ntarget = {target}"))
    };
    assert_eq!(read("1.0", "{ classes = 2 }").unwrap().train.dataset.labels, Labels::Classes(vec![1]));
    assert_eq!(read("-1.5", "'real'").unwrap().train.dataset.labels, Labels::Real(vec![-1.5]));
    for bad in ["2", "-1", "0.5", ">50K", "1e9"] {
        let error = read(bad, "{ classes = 2 }").unwrap_err().message;
        let end = format!("line 2: label column `label` holds `{bad}`; the plan wants a class from 0 to 1");
        assert!(error.contains(&end), "{error}");
    }
    assert!(read("x", "'real'").unwrap_err().message.ends_with("holds `x`; the plan wants a finite number"));
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_its_place() {
    let typed = "csv = { train = 'rows.csv' }";
    let message =
        "`rows.csv` has no column `weight`; its columns are `site`, `split`, `age`, `chol`, `cp`, `label`";
    assert_eq!(refusal(ROWS, typed, "features = ['weight']"), message);
    assert_eq!(
        refusal("age,age,label\n1,2,0\n", typed, "features = ['age']"),
        "`rows.csv` has two columns `age`; rename one"
    );
    let message = "`rows.csv` line 2: column `age` holds `4,5`, which is not a finite number; correct the cell or list the \
                   column under `categorical`; where a comma stands before decimals, set `decimal = \",\"` beside the file's \
                   name";
    assert_eq!(refusal("age,label\n\"4,5\",0\n", typed, "features = ['age']"), message);
    assert!(
        refusal("age,label\ninf,0\n", typed, "features = ['age']")
            .contains("holds `inf`, which is not a finite")
    );
    assert!(
        refusal("age,label\n1e39,0\n", typed, "features = ['age']")
            .contains("holds `1e39`, which is beyond ")
    );
    let ragged = refusal("age,label\n1,0\n2\n", typed, "features = ['age']");
    let message = "`rows.csv` line 3 has 1 cells where the header has 2, separated by `,`; separate them alike, put a cell that \
                   contains one in quotation marks, or set `separator` beside the file's name";
    assert_eq!(ragged, message);
    let absent = refusal(ROWS, "csv = { train = 'none.csv' }", PLAN);
    let message = "cannot open `none.csv`: No such file or directory (os error 2); check the path under [data] and who may \
                   read it";
    assert_eq!(absent, message);
}

#[test]
fn an_empty_result_says_where_the_rows_went() {
    let reason = |rows: &str, typed: &str, settings: &str| {
        refusal(rows, typed, &format!("features = ['age']\n{settings}"))
    };
    let filtered = "csv = { train = 'rows.csv', where = { site = 'c' } }";
    let message = "`rows.csv` has no rows to use: `site` must be `c` and is one of `a`, `b`";
    assert_eq!(reason(ROWS, filtered, ""), message);
    let tested = ROWS.replace("train", "test");
    let message = "`rows.csv` has no rows to use: `split` must be `train` and is one of `test`";
    assert_eq!(reason(&tested, SPLIT, ""), message);
    let message = "`rows.csv` has no rows to use: there is only the header line";
    assert_eq!(reason("age,label\n", "csv = { train = 'rows.csv' }", ""), message);
    let message = "`rows.csv` has no rows to use: 1 of 1 training and test row misses a cell, and `missing` drops such rows";
    assert_eq!(reason("age,label\n?,1\n", "csv = { train = 'rows.csv' }", "missing = 'drop'"), message);
}

#[test]
fn a_misspelt_or_contradictory_source_is_refused() {
    assert!(
        toml::from_str::<SourceSpec>("csv = { trian = 'a.csv' }").unwrap_err().to_string().contains("trian")
    );
    assert!(toml::from_str::<SourceSpec>("parquet = { train = 'a' }").is_err());
    let two: SourceSpec = toml::from_str("csv = { train = 'a', test = 'b', split_column = 'c' }").unwrap();
    assert!(
        load(&two, &plan(PLAN).data).unwrap_err().message.contains("both say which rows are for testing")
    );
    let arrays: SourceSpec = toml::from_str("numpy = { train_x = 'x', train_y = 'y' }").unwrap();
    let message = "the plan describes a table (`data.table`) but this site's data are arrays; give csv files";
    assert_eq!(load(&arrays, &plan(PLAN).data).unwrap_err().message, message);
}

#[test]
fn without_standardisation_the_sites_own_training_mean_fills_gaps() {
    let rows = "age,chol,label\n1,?,0\n2,10,1\n3,30,0\n";
    let filled = prepared(rows, &format!("{PLAN}\nmissing = 'mean'"), None).unwrap();
    assert_eq!(filled, [1.0, 20.0, 2.0, 10.0, 3.0, 30.0]);
}

#[test]
fn a_site_standardises_by_its_training_rows_and_leaves_one_hot_columns_alone() {
    let rows = "split,age,cp,label\ntrain,1,x,0\ntrain,3,y,1\ntest,?,x,0\ntest,5,x,0\n";
    let settings = "features = ['age']\ncategorical = [{ column = 'cp', values = ['x', 'y'] }]\nstandardise = 'site'\n\
                    missing = 'mean'";
    let prepared = read(rows, SPLIT, settings).unwrap().prepared(&plan(settings), None).unwrap();
    assert_eq!(prepared.train.copied().features, [-1.0, 1.0, 0.0, 1.0, 0.0, 1.0]);
    assert_eq!(prepared.test.unwrap().copied().features, [0.0, 1.0, 0.0, 3.0, 1.0, 0.0]);
}

#[test]
fn given_means_standardise_and_fill() {
    let settings = format!(
        "{PLAN}\nmissing = 'mean'\n[data.table.standardise.given]\nmean = [2.0, 100.0]\nstd = [0.5, 10.0]"
    );
    let rows = "age,chol,label\n1,?,0\n?,120,1\n";
    assert_eq!(prepared(rows, &settings, None).unwrap(), [-2.0, 0.0, 0.0, 2.0]);
}

#[test]
fn federated_standardisation_needs_the_federations_numbers() {
    let settings = format!("{PLAN}\nmissing = 'mean'\nstandardise = 'federated'");
    let rows = "age,chol,label\n1,?,0\n3,120,1\n";
    let federated = Standardiser { mean: vec![1.0, 100.0], std: vec![2.0, 10.0] };
    assert_eq!(prepared(rows, &settings, Some(&federated)).unwrap(), [0.0, 0.0, 1.0, 2.0]);
    let absent = prepared(rows, &settings, None).unwrap_err();
    assert_eq!(absent.reason, Decline::Unsupported);
    assert!(
        absent.message.ends_with("the task brought none; the server must run its statistics round first")
    );
    let short = Standardiser { mean: vec![1.0], std: vec![1.0] };
    let message = "1 means and 1 deviations came for 2 numeric columns; each column needs a finite mean and a deviation \
                   above 0";
    assert_eq!(prepared(rows, &settings, Some(&short)).unwrap_err().message, message);
}

#[test]
fn a_constant_stands_in_before_standardisation() {
    let settings = "features = ['age']\nmissing = { constant = 4.0 }\nstandardise = 'site'";
    assert_eq!(prepared("age,label\n2,0\n?,1\n", settings, None).unwrap(), [-1.0, 1.0]);
}

#[test]
fn statistics_are_over_present_training_cells_and_make_the_same_standardiser() {
    let rows = "split,age,chol,label\ntrain,1,?,0\ntrain,3,120,1\ntest,9,9,0\n";
    let federated = plan(&format!("{PLAN}\nmissing = 'mean'\nstandardise = 'federated'"));
    let data = read(rows, SPLIT, &format!("{PLAN}\nmissing = 'mean'")).unwrap();
    let statistics = data.statistics(&federated).unwrap();
    let names: Vec<String> = statistics.iter().map(|one| one.name.clone()).collect();
    assert_eq!(names, federated.statistics());
    let totals: Vec<_> = statistics.into_iter().map(|one| one.value).collect();
    let values: Vec<f64> = totals.iter().map(|total| total.value()).collect();
    assert_eq!(values, [2.0, 4.0, 10.0, 1.0, 120.0, 14400.0]);
    let site = plan(&format!("{PLAN}\nmissing = 'mean'\nstandardise = 'site'"));
    assert!(data.statistics(&site).unwrap().is_empty());
    let standardiser = Standardiser::from_totals(&totals).unwrap();
    let (by_all, by_site) = (data.prepared(&federated, Some(&standardiser)), data.prepared(&site, None));
    assert_eq!(
        by_all.unwrap().train.copied(),
        by_site.unwrap().train.copied(),
        "a federation of one is its site"
    );
}

#[test]
fn records_in_memory_are_checked_against_the_plan() {
    let whole = |shape: Vec<usize>, features: Vec<f32>, labels| {
        let dataset = Dataset { shape, features: features.into(), labels };
        SiteData { train: learning::View::whole(dataset.into()), test: None }
    };
    let refusal = |mut data: SiteData| data.load(&plan(PLAN)).unwrap_err().message;
    let classes = |label| Labels::Classes(vec![label]);
    let message = "training samples have shape [1] where the plan has [2]";
    assert_eq!(refusal(whole(vec![1], vec![0.0], classes(0))), message);
    let message = "training records hold 1 values for 1 labels of shape [2]";
    assert_eq!(refusal(whole(vec![2], vec![0.0], classes(0))), message);
    let message = "training row 0 has class 2; the plan has classes 0 to 1";
    assert_eq!(refusal(whole(vec![2], vec![0.0; 2], classes(2))), message);
    let message = "training labels are real; the plan has classes";
    assert_eq!(refusal(whole(vec![2], vec![0.0; 2], Labels::Real(vec![0.0]))), message);
    let gap =
        whole(vec![2], vec![0.0, f32::NAN], classes(1)).prepared(&plan(PLAN), None).unwrap_err().message;
    assert_eq!(
        gap,
        "training row 0 has NaN in column `chol` after preparation; clean it, set `missing`, or standardise what f32 does not reach"
    );
}

#[test]
fn files_are_read_once_until_a_plan_wants_other_columns() {
    let folder = folder("age,chol,label\n1,2,0\n");
    let mut files = FileSource::new(source(folder.path(), "csv = { train = 'rows.csv' }"));
    assert_eq!(files.load(&plan("features = ['age']")).unwrap().train.copied().features, [1.0]);
    fs::write(folder.path().join("rows.csv"), "age,chol,label\n3,4,0\n").unwrap();
    assert_eq!(files.load(&plan("features = ['age']")).unwrap().train.copied().features, [1.0]);
    assert_eq!(files.load(&plan("features = ['chol']")).unwrap().train.copied().features, [4.0]);
}

#[test]
fn every_bundled_hospital_has_its_rows() {
    let (source, spec) = heart();
    let SourceSpec::Csv(csv) = &source else { unreachable!() };
    for (site, train, test) in
        [("cleveland", 199, 104), ("hungarian", 172, 89), ("switzerland", 30, 16), ("va", 85, 45)]
    {
        let mut one = csv.clone();
        one.filter.insert("site".into(), site.into());
        let data = load(&SourceSpec::Csv(one), &spec).unwrap();
        assert_eq!((data.train.len(), data.test.unwrap().len()), (train, test), "{site}");
    }
}

#[test]
fn natural_clients_hold_the_rows_of_their_id() {
    let (source, spec) = heart();
    let identified = load_with_ids(&source, &spec, &IdSource::Column("site".into())).unwrap();
    assert_eq!((identified.train.len(), identified.test.as_ref().unwrap().len()), (486, 254));
    let clients = identified.clients();
    let sizes: Vec<(&str, usize, usize)> = clients
        .iter()
        .map(|client| (client.id.as_str(), client.data.train.len(), client.data.test.as_ref().unwrap().len()))
        .collect();
    assert_eq!(
        sizes,
        [("cleveland", 199, 104), ("hungarian", 172, 89), ("switzerland", 30, 16), ("va", 85, 45)]
    );
    let first = clients[2].data.train.copied();
    assert_eq!(first.sample(0)[0], identified.train.sample(clients[2].data.train.rows[0] as usize)[0]);
}

#[test]
fn a_row_without_an_id_is_refused() {
    let folder = folder("who,age,label\nx,1,0\n,2,1\n");
    let source = source(folder.path(), "csv = { train = 'rows.csv' }");
    let ids = IdSource::Column("who".into());
    let error = load_with_ids(&source, &plan("features = ['age']").data, &ids).unwrap_err().message;
    assert!(error.ends_with("rows.csv` line 3: the id column is empty; every row needs an id"), "{error}");
    let files: IdSource = toml::from_str("files = { train = 'x' }").unwrap();
    let error = load_with_ids(&source, &plan("features = ['age']").data, &files).unwrap_err().message;
    assert_eq!(error, "csv data takes its ids from a column; write `column = \"...\"`");
}

#[test]
fn the_raw_records_are_refused_filled_or_dropped() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data");
    let source = source(&base, "csv = { train = 'heart_disease_raw.csv', where = { site = 'hungarian' } }");
    let columns = "features = ['age', 'chol', 'thalach']\ncategorical = [{ column = 'cp', values = ['1', '2', '3', '4'] }]\n\
                   target = { classes = 5 }";
    let DataSpec::Table(mut table) = plan(columns).data else { unreachable!() };
    table.label = "num".into();
    let error = load(&source, &DataSpec::Table(table.clone())).unwrap_err().message;
    assert!(error.contains("heart_disease_raw.csv` line 307: column `chol` holds ``"), "{error}");
    table.missing = Missing::Drop;
    let dropped = load(&source, &DataSpec::Table(table.clone())).unwrap();
    table.missing = Missing::Mean;
    let filled = load(&source, &DataSpec::Table(table)).unwrap();
    assert_eq!((dropped.train.len(), filled.train.len()), (270, 294));
    assert_eq!(filled.train.copied().features.to_vec().iter().filter(|cell| cell.is_nan()).count(), 23 + 1);
}

#[test]
fn where_single_records_are_protected_a_row_that_cannot_be_read_is_left_out_and_decides_nothing() {
    let settings = format!(
        "{PLAN}\n[privacy.examples]\nnoise_multiplier = 1\nnorm_max = 1\ndelta = 1e-5\nepsilon_max = 1\n"
    );
    let rows = |bad: &str| format!("age,chol,label\n50,200,1\n{bad}40,180,0\n");
    let read = |rows: &str| {
        let folder = folder(rows);
        let mut files = FileSource::new(source(folder.path(), "csv = { train = 'rows.csv' }"));
        let spec = plan(&settings);
        let data = files.load(&spec)?;
        Ok::<_, LearnError>(data.prepared(&spec, None)?.train.copied())
    };
    let sound = read(&rows("")).unwrap();
    assert_eq!(sound.len(), 2);
    for bad in
        ["x,200,1\n", "50,,1\n", "50,200,\n", "50,200,7\n", "50,200,1,9\n", "50,1e99,1\n", "50,200,a\n"]
    {
        assert!(read(&rows(bad)).unwrap() == sound, "{bad:?}");
        let folder = folder(&rows(bad));
        let strict = load(&source(folder.path(), "csv = { train = 'rows.csv' }"), &plan(PLAN).data);
        assert!(strict.is_err(), "{bad:?}: without a promise it is refused");
    }
    // Cells are clamped, and no row at all is no error.
    let huge = read("age,chol,label\n3e38,-3e38,1\n").unwrap();
    assert_eq!(huge.features.to_vec(), [protocol::CELL_MAX, -protocol::CELL_MAX]);
    assert!(
        read("age,chol,label\nx,1,1\n").unwrap().is_empty() && read("age,chol,label\n").unwrap().is_empty()
    );
    // What columns there are is no secret of a record.
    assert_eq!(read("age,label\n50,1\n").unwrap_err().reason, Decline::Data);
}

#[test]
fn digits_that_an_offset_leaves_reach_the_standardised_column() {
    let settings = "features = ['time', 'mol']\nstandardise = 'site'";
    let rows = "time,mol,label\n1700000000000.25,1e-15,0\n1700000000000.75,3e-15,1\n";
    assert_eq!(prepared(rows, settings, None).unwrap(), [-1.0, -1.0, 1.0, 1.0]);
}

#[test]
fn a_constant_column_is_zero_wherever_it_lies() {
    let settings = "features = ['age', 'chol']\nstandardise = 'site'";
    for constant in ["1.7e18", "-1e-300", "0.1", "0"] {
        let rows: String = (0..7).map(|row| format!("{row},{constant},0\n")).collect();
        let cells = prepared(&format!("age,chol,label\n{rows}"), settings, None).unwrap();
        assert!(cells.iter().skip(1).step_by(2).all(|cell| cell.abs() < 1e-12), "{constant}: {cells:?}");
    }
}

#[test]
fn trying_records_out_finds_what_a_run_would_and_names_the_column() {
    for standardise in ["federated", "site"] {
        let spec = plan(&format!("{PLAN}\nstandardise = '{standardise}'"));
        let of = |cells: [f32; 4]| {
            let labels = Labels::Classes(vec![0, 1]);
            let dataset = Dataset { shape: vec![2], features: cells.to_vec().into(), labels };
            SiteData { train: learning::View::whole(dataset.into()), test: None }.try_out(&spec)
        };
        assert_eq!(of([1.0, 2.0, 3.0, 2.0]).unwrap(), ["chol"]);
        assert!(of([1.0, 2.0, 3.0, 4.0]).unwrap().is_empty());
        let infinite = of([1.0, f32::INFINITY, 3.0, 2.0]).unwrap_err();
        assert!(infinite.reason == Decline::Data && infinite.message.contains("column `chol`"), "{infinite}");
    }
}
