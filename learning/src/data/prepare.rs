//! From records to what a model sees: missing cells filled, numeric columns standardised.
//!
//! The mean and deviation come from the federation, the plan, or the site's own training rows; never from test rows.
//! One-hot columns are left as they are. Nothing that is not finite leaves this file.
//!
//! A record that cannot be used is an error that names it, but where the plan protects single records: there each stands
//! alone, so it is left out and decides nothing about the others, and cells are clamped to [`CELL_MAX`].

use std::sync::Arc;

use privacy::{Moments, NotSummable};
use protocol::{
    CELL_MAX, DataSpec, Decline, LayerSpec, LearnError, Missing, ModelSpec, Spec, Standardise, Standardiser,
    Statistic, TableSpec, Target,
};

use super::{Dataset, Labels, View};

/// Where a site's records come from.
pub trait DataSource: Send {
    /// The records in the form the plan asks for. Called again whenever the plan changes.
    ///
    /// # Errors
    /// [`LearnError`] with the file, line, column and value at fault.
    fn load(&mut self, spec: &Spec) -> Result<SiteData, LearnError>;
}

/// A site's training and test records, not yet prepared.
#[derive(Clone, Debug)]
pub struct SiteData {
    /// To train on.
    pub train: View,
    /// To measure on, if the site has such.
    pub test: Option<View>,
}

impl SiteData {
    /// Whether there is a record to measure on: a table of test records may be empty.
    pub fn has_tests(&self) -> bool {
        self.test.as_ref().is_some_and(|test| !test.is_empty())
    }
}

/// Clean records: every number is finite. Arrays stay where they are; the rows of a table are copied, since preparing changes
/// them.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// To train on.
    pub train: View,
    /// To measure on, if the site has such.
    pub test: Option<View>,
}

/// Records already in memory, such as a virtual client's, serve any plan that fits them.
impl DataSource for SiteData {
    fn load(&mut self, spec: &Spec) -> Result<SiteData, LearnError> {
        self.check(spec)?;
        Ok(self.clone())
    }
}

impl SiteData {
    /// Fills missing cells and standardises numeric columns as the plan says. `standardiser` is the federation's, needed
    /// where the plan says [`Standardise::Federated`] and ignored elsewhere. [`Missing::Mean`] fills with the mean that
    /// is subtracted, and without standardisation with the site's training mean; a column without any value counts as 0.
    ///
    /// # Errors
    /// When records do not fit the plan, the standardiser is absent or of another length, or a number is not finite. Where the
    /// plan protects single records, only when the records as a whole have another shape or another kind of label.
    pub fn prepared(&self, spec: &Spec, standardiser: Option<&Standardiser>) -> Result<Prepared, LearnError> {
        self.check(spec)?;
        let recipe = match &spec.data {
            DataSpec::Table(table) => Some(Recipe::of(table, &self.train, standardiser)?),
            DataSpec::Tensor(_) | DataSpec::Own => None,
        };
        if spec.privacy.examples.is_some() {
            let alone = |view: &View| usable(view, recipe.as_ref(), spec);
            return Ok(Prepared { train: alone(&self.train), test: self.test.as_ref().map(alone) });
        }
        let cleaned = |view: &View, what: &str| {
            let Some(recipe) = &recipe else {
                let unfinished = find_unfinished(view, &view.rows, what, &|place| format!("place {place}"));
                return unfinished.map_or_else(|| Ok(view.clone()), Err);
            };
            let records = View::whole(Arc::new(recipe.applied(view)));
            let column = |place| recipe.column(place);
            find_unfinished(&records, &view.rows, what, &column).map_or(Ok(records), Err)
        };
        let known = |view: View, rows: &[u32], what: &str| match find_unknown_symbol(&view, spec, rows, what)
        {
            Some(unknown) => Err(unknown),
            None => Ok(view),
        };
        let train = known(cleaned(&self.train, "training")?, &self.train.rows, "training")?;
        let test = self.test.as_ref().map(|test| known(cleaned(test, "test")?, &test.rows, "test"));
        Ok(Prepared { train, test: test.transpose()? })
    }

    /// Whether the records have the plan's form; where single records are protected, whatever a single one is.
    fn check(&self, spec: &Spec) -> Result<(), LearnError> {
        let parts = [(Some(&self.train), "training"), (self.test.as_ref(), "test")];
        for (view, what) in parts.into_iter().filter_map(|(view, what)| Some((view?, what))) {
            check_form(view, spec, what)?;
            if spec.privacy.examples.is_none() {
                check_classes(view, spec, what)?;
            }
        }
        Ok(())
    }

    /// Count, sum and sum of squares of the present cells of every numeric column over the training rows, without rounding,
    /// under the names of [`Spec::statistics`]; empty where the plan has none.
    ///
    /// # Errors
    /// When a cell is infinite; the message names its column.
    pub fn statistics(&self, spec: &Spec) -> Result<Vec<Statistic>, LearnError> {
        let names = spec.statistics();
        let DataSpec::Table(table) = &spec.data else { return Ok(Vec::new()) };
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let columns = moments(&self.train, table.features.len(), |row, column, wrong| {
            let name = &table.features[column];
            let message = format!("training row {row}, column `{name}`: {wrong}; correct the cell");
            Err(LearnError::new(Decline::Data, message))
        })?;
        let values = columns.into_iter().flat_map(|column| [column.count, column.sum, column.square]);
        Ok(names.into_iter().zip(values).map(|(name, value)| Statistic { name, value }).collect())
    }
}

impl SiteData {
    /// Does with the records what a run does with them before it trains: their statistics are counted, and they are prepared as in a
    /// federation of this site alone. Gives the names of the columns that the plan standardises and that have no spread here: all
    /// their cells are the same, or differ by no more than writing them in f64 makes them differ.
    ///
    /// # Errors
    /// As [`SiteData::statistics`] and [`SiteData::prepared`].
    pub fn try_out(&self, spec: &Spec) -> Result<Vec<String>, LearnError> {
        let totals: Vec<_> = self.statistics(spec)?.into_iter().map(|statistic| statistic.value).collect();
        let own = (!totals.is_empty()).then(|| Standardiser::from_totals(&totals)).flatten();
        self.prepared(spec, own.as_ref())?;
        let DataSpec::Table(table) = &spec.data else { return Ok(Vec::new()) };
        if !matches!(table.standardise, Standardise::Federated | Standardise::Site) {
            return Ok(Vec::new());
        }
        let columns = moments(&self.train, table.features.len(), |_, _, _| Ok::<_, LearnError>(()))?;
        let flat = columns.iter().map(|column| column.deviation().is_none());
        Ok(table.features.iter().zip(flat).filter(|(_, flat)| *flat).map(|(name, _)| name.clone()).collect())
    }
}

/// What is done to each numeric column: `NaN -> fill`, then `(x - mean) / std`.
struct Recipe<'a> {
    table: &'a TableSpec,
    fill: Vec<f64>,
    scale: Option<Standardiser>,
}

impl<'a> Recipe<'a> {
    fn of(table: &'a TableSpec, train: &View, federated: Option<&Standardiser>) -> Result<Self, LearnError> {
        let count = table.features.len();
        // A cell that is infinite is found, and named, when the records are ready.
        let own = || {
            moments(train, count, |_, _, _| Ok::<_, LearnError>(()))
                .map(|columns| Standardiser::of_columns(&columns))
        };
        let scale = match &table.standardise {
            Standardise::None => None,
            Standardise::Site => Some(own()?),
            Standardise::Given { mean, std } => Some(Standardiser {
                mean: mean.clone(),
                std: std.iter().map(|std| std.value()).collect(),
            }),
            Standardise::Federated => Some(federated.cloned().ok_or_else(|| {
                let message = "the plan standardises with the federation's statistics, but the task brought none; \
                               the server must run its statistics round first";
                LearnError::new(Decline::Unsupported, message)
            })?),
        };
        if let Some(wrong) = scale.as_ref().filter(|scale| !scale.fits(count)) {
            let message = format!(
                "{} means and {} deviations came for {count} numeric columns; each column needs a finite mean and a \
                 deviation above 0",
                wrong.mean.len(),
                wrong.std.len()
            );
            return Err(LearnError::new(Decline::Unsupported, message));
        }
        let fill = match table.missing {
            Missing::Mean => match &scale {
                Some(scale) => scale.mean.clone(),
                None => own()?.mean,
            },
            Missing::Constant(value) => vec![value; count],
            Missing::Refuse | Missing::Drop => vec![f64::NAN; count],
        };
        Ok(Self { table, fill, scale })
    }

    /// The rows of `view`, ready: reckoned in f64, and rounded to f32 once, at the end.
    fn applied(&self, view: &View) -> Dataset {
        let dataset = &view.dataset;
        let mut row = vec![0.0; dataset.width()];
        let mut features = Vec::with_capacity(view.len() * row.len());
        for place in view.rows.iter() {
            dataset.copy_wide_sample_into(*place as usize, &mut row);
            for (column, (cell, fill)) in row.iter_mut().zip(&self.fill).enumerate() {
                let value = if cell.is_nan() { *fill } else { *cell };
                *cell = self.scale.as_ref().map_or(value, |scale| scale.standardised(column, value));
            }
            features.extend(row.iter().map(|cell| *cell as f32));
        }
        let labels = dataset.labels.select(&view.rows);
        Dataset { shape: dataset.shape.clone(), features: features.into(), labels }
    }

    /// What people call the value at `place` of a row.
    fn column(&self, place: usize) -> String {
        let numeric = self.table.features.iter();
        let categorical = self.table.categorical.iter();
        let coded = categorical.flat_map(|one| std::iter::repeat_n(&one.column, one.values.len()));
        numeric
            .chain(coded)
            .nth(place)
            .map_or_else(|| format!("place {place}"), |name| format!("column `{name}`"))
    }
}

/// Count, sum and sum of squares of the first `columns` columns, over the cells that are present. A cell that is infinite is
/// left out where `wrong`, which is told row, column and why, allows it.
fn moments<E>(
    view: &View,
    columns: usize,
    wrong: impl Fn(u32, usize, NotSummable) -> Result<(), E>,
) -> Result<Vec<Moments>, E> {
    let mut moments = vec![Moments::default(); columns];
    let mut row = vec![0.0; view.dataset.width()];
    for place in view.rows.iter() {
        view.dataset.copy_wide_sample_into(*place as usize, &mut row);
        for (column, (moments, cell)) in moments.iter_mut().zip(&row).enumerate() {
            if !cell.is_nan()
                && let Err(why) = moments.add(*cell)
            {
                wrong(*place, column, why)?;
            }
        }
    }
    Ok(moments)
}

/// The records that a model can take, each judged on its own. A table's cells are clamped.
fn usable(view: &View, recipe: Option<&Recipe<'_>>, spec: &Spec) -> View {
    let view = match recipe {
        None => view.clone(),
        Some(recipe) => {
            let mut records = recipe.applied(view);
            for cell in records.features.make_real() {
                *cell = cell.clamp(-CELL_MAX, CELL_MAX);
            }
            View::whole(Arc::new(records))
        }
    };
    let dataset = &view.dataset;
    let finite = dataset.features.are_finite();
    let symbols = symbols(spec);
    let mut cells = vec![0.0; dataset.width()];
    let mut is_usable = |row: u32| {
        let labelled = match (&dataset.labels, spec.target()) {
            (Labels::Real(values), _) => values[row as usize].is_finite(),
            (Labels::Classes(labels), Target::Classes(classes)) => (labels[row as usize] as usize) < classes,
            (Labels::Classes(_), Target::Real) => false,
        };
        if !labelled || (finite && symbols.is_none()) {
            return labelled;
        }
        dataset.copy_sample_into(row as usize, &mut cells);
        cells.iter().all(|cell| cell.is_finite() && symbols.is_none_or(|symbols| is_symbol(*cell, symbols)))
    };
    let rows = view.rows.iter().copied().filter(|row| is_usable(*row)).collect();
    View { rows, ..view.clone() }
}

/// Whether records in memory have the plan's shape and kind of label.
fn check_form(view: &View, spec: &Spec, what: &str) -> Result<(), LearnError> {
    let (dataset, shape) = (&view.dataset, spec.input_shape());
    let refuse = |message: String| Err(LearnError::new(Decline::Data, message));
    if dataset.shape != shape {
        return refuse(format!("{what} samples have shape {:?} where the plan has {shape:?}", dataset.shape));
    }
    if dataset.features.len() != dataset.len() * dataset.width() {
        let (values, rows) = (dataset.features.len(), dataset.len());
        return refuse(format!("{what} records hold {values} values for {rows} labels of shape {shape:?}"));
    }
    if let Some(row) = view.rows.iter().find(|row| **row as usize >= dataset.len()) {
        return refuse(format!("{what} row {row} does not exist; there are {}", dataset.len()));
    }
    match (&dataset.labels, spec.target()) {
        (Labels::Real(_), Target::Real) | (Labels::Classes(_), Target::Classes(_)) => Ok(()),
        (Labels::Real(_), Target::Classes(_)) => {
            refuse(format!("{what} labels are real; the plan has classes"))
        }
        (Labels::Classes(_), Target::Real) => {
            refuse(format!("{what} labels are classes; the plan has a real target"))
        }
    }
}

/// Whether every class is one of the plan's.
fn check_classes(view: &View, spec: &Spec, what: &str) -> Result<(), LearnError> {
    let (Labels::Classes(labels), Target::Classes(classes)) = (&view.dataset.labels, spec.target()) else {
        return Ok(());
    };
    let beyond = view.rows.iter().find(|row| labels[**row as usize] as usize >= classes);
    beyond.map_or(Ok(()), |row| {
        let label = labels[*row as usize];
        let message =
            format!("{what} row {row} has class {label}; the plan has classes 0 to {}", classes - 1);
        Err(LearnError::new(Decline::Data, message))
    })
}

/// The first number that a model could not take. `rows` are the numbers by which the site knows the records.
/// `column` says what people call a place.
fn find_unfinished(
    records: &View,
    rows: &[u32],
    what: &str,
    column: &dyn Fn(usize) -> String,
) -> Option<LearnError> {
    let label = match &records.dataset.labels {
        Labels::Real(values) => records.rows.iter().position(|row| !values[*row as usize].is_finite()),
        Labels::Classes(_) => None,
    };
    let message = match (find_unfinished_cell(records), label) {
        (Some((place, at, value)), _) => format!(
            "{what} row {} has {value} in {} after preparation; clean it, set `missing`, or standardise what f32 does not reach",
            rows[place],
            column(at)
        ),
        (None, Some(place)) => format!("{what} row {} has a label that is not finite", rows[place]),
        (None, None) => return None,
    };
    Some(LearnError::new(Decline::Data, message))
}

/// How many symbols the embedding has with which the plan's model begins, if it does: the smallest one where residual
/// connections begin with several.
pub(crate) fn symbols(spec: &Spec) -> Option<usize> {
    let ModelSpec::Layers(layers) = &spec.model else { return None };
    first_symbols(layers)
}

fn first_symbols(layers: &[LayerSpec]) -> Option<usize> {
    match layers.first()? {
        LayerSpec::Embedding { symbols, .. } => Some(*symbols),
        LayerSpec::Residual { layers, shortcut } => {
            [first_symbols(layers), first_symbols(shortcut)].into_iter().flatten().min()
        }
        _ => None,
    }
}

fn is_symbol(value: f32, symbols: usize) -> bool {
    value.fract() == 0.0 && value >= 0.0 && (value as usize) < symbols
}

/// The first value that the plan's embedding has no vector for, where the model begins with one.
fn find_unknown_symbol(records: &View, spec: &Spec, rows: &[u32], what: &str) -> Option<LearnError> {
    let symbols = symbols(spec)?;
    let mut cells = vec![0.0; records.dataset.width()];
    (0..records.len()).find_map(|place| {
        records.copy_sample_into(place, &mut cells);
        let column = cells.iter().position(|value| !is_symbol(*value, symbols))?;
        let message = format!(
            "{what} row {} has {} in place {column}, and the model's embedding has the symbols 0 to {}; give it more `symbols`, \
             or mend the record",
            rows[place],
            cells[column],
            symbols.saturating_sub(1)
        );
        Some(LearnError::new(Decline::Data, message))
    })
}

/// The first cell that is not finite: its place among the records, its column and its value.
fn find_unfinished_cell(records: &View) -> Option<(usize, usize, f32)> {
    // Whether a data set that many clients share is finite is looked at once, not once a client.
    if records.dataset.features.are_finite() {
        return None;
    }
    let mut cells = vec![0.0; records.dataset.width()];
    (0..records.len()).find_map(|place| {
        records.copy_sample_into(place, &mut cells);
        let column = cells.iter().position(|value| !value.is_finite())?;
        Some((place, column, cells[column]))
    })
}
