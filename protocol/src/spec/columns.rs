//! A list of columns. A plan that means others by a prefix or by `"rest"` has to be completed from a file's header first: all sites
//! must read the same columns, and only a list says which.

use std::fmt;

use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};

const INCOMPLETE: &str = "`\"rest\"`, `{ except = [...] }` and `{ prefix = \"...\" }` stand for columns of a file, which is not known here: \
                          `--columns FILE` names one whose header line all sites share, and a simulation takes its own";

/// Reads a list of names; what stands for columns of a file is refused with the way to complete it.
pub(super) fn listed<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    from.deserialize_any(Names)
}

struct Names;

impl<'de> Visitor<'de> for Names {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of column names")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Self::Value, A::Error> {
        let mut found = Vec::new();
        while let Some(Name(name)) = names.next_element()? {
            found.push(name);
        }
        Ok(found)
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<Self::Value, E> {
        if word == "rest" {
            return Err(E::custom(INCOMPLETE));
        }
        Err(E::invalid_type(de::Unexpected::Str(word), &self))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Err(A::Error::custom(INCOMPLETE))
    }
}

struct Name(String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(NameVisitor)
    }
}

struct NameVisitor;

impl<'de> Visitor<'de> for NameVisitor {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a column")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Name, E> {
        Ok(Name(name.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Name, A::Error> {
        Names.visit_map(map).map(|_| Name(String::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Vec<String>, String> {
        listed(&mut serde_json::Deserializer::from_str(json)).map_err(|error| error.to_string())
    }

    #[test]
    fn only_a_list_of_names_says_which_columns_are_meant() {
        assert_eq!(read(r#"["a", "rest"]"#).unwrap(), ["a", "rest"]);
        for open in [r#""rest""#, r#"{"prefix":"g_"}"#, r#"{"except":["id"]}"#, r#"["a",{"prefix":"g_"}]"#] {
            assert!(read(open).unwrap_err().contains("`--columns FILE`"), "{open}");
        }
        for (wrong, said) in
            [("\"all\"", "expected a list"), ("3", "expected a list"), ("[3]", "the name of a column")]
        {
            assert!(read(wrong).unwrap_err().contains(said), "{wrong}");
        }
    }
}
