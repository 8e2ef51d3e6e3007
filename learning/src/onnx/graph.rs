//! A graph while it is written: nodes, the tensors they know, and a name for every result.

use std::collections::BTreeMap;

use super::proto::{
    AttributeProto, DimensionProto, GraphProto, NodeProto, TensorProto, TensorShapeProto, TensorTypeProto,
    TypeProto, ValueInfoProto,
};

/// Nodes and tensors so far.
#[derive(Debug, Default)]
pub(super) struct Graph {
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    counts: BTreeMap<&'static str, usize>,
}

impl Graph {
    /// Appends an operation with one result, and gives the result's name.
    pub(super) fn node(
        &mut self,
        operation: &'static str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
    ) -> String {
        let count = self.counts.entry(operation).or_default();
        *count += 1;
        let name = format!("{operation}_{count}");
        self.push(operation, inputs, attributes, name.clone());
        name
    }

    /// Appends an operation whose result has a name of the caller's.
    pub(super) fn named(
        &mut self,
        operation: &'static str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
        result: &str,
    ) {
        self.push(operation, inputs, attributes, result.to_owned());
    }

    fn push(&mut self, operation: &str, inputs: &[&str], attribute: Vec<AttributeProto>, result: String) {
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: vec![result.clone()],
            name: result,
            op_type: operation.to_owned(),
            attribute,
        });
    }

    /// Adds a tensor of f32, and gives its name back.
    pub(super) fn floats<'a>(
        &mut self,
        name: &'a str,
        shape: &[usize],
        values: impl IntoIterator<Item = f32>,
    ) -> &'a str {
        let bytes = values.into_iter().flat_map(f32::to_le_bytes).collect();
        self.tensor(name, TensorProto::FLOAT, shape, bytes)
    }

    /// Adds a row of f64.
    pub(super) fn doubles<'a>(&mut self, name: &'a str, values: &[f64]) -> &'a str {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(name, TensorProto::DOUBLE, &[values.len()], bytes)
    }

    /// Adds whole numbers; an empty shape makes a scalar.
    pub(super) fn integers<'a>(&mut self, name: &'a str, shape: &[usize], values: &[i64]) -> &'a str {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(name, TensorProto::INT64, shape, bytes)
    }

    /// A tensor that several nodes may ask for is written once.
    fn tensor<'a>(&mut self, name: &'a str, data_type: i32, shape: &[usize], raw_data: Vec<u8>) -> &'a str {
        if !self.initializers.iter().any(|tensor| tensor.name == name) {
            let dims = shape.iter().map(|side| *side as i64).collect();
            self.initializers.push(TensorProto { dims, data_type, name: name.to_owned(), raw_data });
        }
        name
    }

    /// The finished graph.
    pub(super) fn finish(self, name: &str, input: ValueInfoProto, output: Vec<ValueInfoProto>) -> GraphProto {
        let (node, initializer) = (self.nodes, self.initializers);
        GraphProto { node, name: name.to_owned(), initializer, input: vec![input], output }
    }
}

/// A tensor that goes in or comes out: any number of samples of this shape, in numbers of this type.
pub(super) fn value(name: &str, shape: &[usize], elem_type: i32, doc_string: String) -> ValueInfoProto {
    let batch = DimensionProto { dim_param: Some("batch".to_owned()), dim_value: None };
    let side = |side: &usize| DimensionProto { dim_value: Some(*side as i64), dim_param: None };
    let dim = std::iter::once(batch).chain(shape.iter().map(side)).collect();
    let tensor_type = TensorTypeProto { elem_type, shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto {
        name: name.to_owned(),
        kind: Some(TypeProto { tensor_type: Some(tensor_type) }),
        doc_string,
    }
}
