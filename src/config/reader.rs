//! Reading TOML so that every error names its line and its key.

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::ConfigError;

/// A file, for saying where in it something is wrong.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// Its name, as given.
    pub file: &'a Path,
    /// What it says.
    pub text: &'a str,
}

impl Source<'_> {
    /// An error at a place in the file.
    pub fn error(self, at: &Range<usize>, sentence: String) -> ConfigError {
        let before = self.text.get(..at.start).unwrap_or(self.text);
        ConfigError {
            place: Some((self.file.to_owned(), before.matches('\n').count() + 1)),
            sentence,
        }
    }
}

/// A table whose keys are taken out one by one; what is left at the end is unknown.
pub struct Table<'a> {
    source: Source<'a>,
    path: String,
    span: Range<usize>,
    entries: BTreeMap<&'a str, (Range<usize>, &'a Spanned<DeValue<'a>>)>,
    asked: Vec<&'static str>,
}

/// A value and where it stands.
pub struct Entry<'a> {
    source: Source<'a>,
    key: String,
    value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Table<'a> {
    /// The whole file.
    pub fn root(source: Source<'a>, parsed: &'a Spanned<DeTable<'a>>) -> Self {
        Self::new(source, String::new(), parsed.span(), parsed.get_ref())
    }

    fn new(source: Source<'a>, path: String, span: Range<usize>, table: &'a DeTable<'a>) -> Self {
        let entries = table
            .iter()
            .map(|(key, value)| (key.get_ref().as_ref(), (key.span(), value)))
            .collect();
        Self {
            source,
            path,
            span,
            entries,
            asked: Vec::new(),
        }
    }

    /// The value of `key`, if it is there.
    pub fn take(&mut self, key: &'static str) -> Option<Entry<'a>> {
        self.asked.push(key);
        let (_, value) = self.entries.remove(key)?;
        Some(self.entry(key, value))
    }

    /// The table `key`; an empty one if it is not there.
    pub fn take_table(&mut self, key: &'static str) -> Result<Self, ConfigError> {
        match self.take(key) {
            Some(entry) => entry.table(),
            None => Ok(Self {
                source: self.source,
                path: key.to_owned(),
                span: self.span.clone(),
                entries: BTreeMap::new(),
                asked: Vec::new(),
            }),
        }
    }

    /// All entries, in the order of the file: for a table whose keys are names.
    pub fn take_all(mut self) -> Vec<(&'a str, Entry<'a>)> {
        let mut entries: Vec<_> = std::mem::take(&mut self.entries).into_iter().collect();
        entries.sort_by_key(|(_, (at, _))| at.start);
        entries
            .into_iter()
            .map(|(key, (_, value))| (key, self.entry(key, value)))
            .collect()
    }

    /// Nothing else may be in it.
    pub fn finish(self) -> Result<(), ConfigError> {
        let first = self.entries.iter().min_by_key(|(_, (at, _))| at.start);
        let Some((key, (at, _))) = first else {
            return Ok(());
        };
        let place = if self.path.is_empty() {
            String::new()
        } else {
            format!(" in [{}]", self.path)
        };
        let hint = match nearest(key, &self.asked) {
            Some(known) => format!(" (did you mean \"{known}\"?)"),
            None => format!("; known are: {}", self.asked.join(", ")),
        };
        Err(self
            .source
            .error(at, format!("unknown key \"{key}\"{place}{hint}")))
    }

    /// An error about the table as a whole.
    pub fn error(&self, sentence: &str) -> ConfigError {
        self.source
            .error(&self.span, format!("[{}]: {sentence}", self.path))
    }

    fn entry(&self, key: &str, value: &'a Spanned<DeValue<'a>>) -> Entry<'a> {
        let key = if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        };
        Entry {
            source: self.source,
            key,
            value,
        }
    }
}

impl<'a> Entry<'a> {
    /// An error about this value.
    pub fn error(&self, sentence: &str) -> ConfigError {
        self.source
            .error(&self.value.span(), format!("{}: {sentence}", self.key))
    }

    fn must_be(&self, what: &str) -> ConfigError {
        let found = self
            .source
            .text
            .get(self.value.span())
            .and_then(|text| text.lines().next())
            .unwrap_or_default();
        self.error(&format!("must be {what}; {found} is not"))
    }

    /// A text that `parse` understands; its error is the sentence.
    pub fn parse<T>(
        &self,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        let text = self
            .value
            .get_ref()
            .as_str()
            .ok_or_else(|| self.must_be("a text in quotes"))?;
        parse(text).map_err(|sentence| self.error(&sentence))
    }

    /// A whole number within `range`.
    pub fn whole(&self, range: RangeInclusive<u32>) -> Result<u32, ConfigError> {
        self.value
            .get_ref()
            .as_integer()
            .and_then(|digits| i64::from_str_radix(digits.as_str(), digits.radix()).ok())
            .and_then(|number| u32::try_from(number).ok())
            .filter(|number| range.contains(number))
            .ok_or_else(|| {
                let (least, most) = (range.start(), range.end());
                self.must_be(&format!("a whole number from {least} to {most}"))
            })
    }

    /// A number, with or without decimals, within `range`.
    pub fn number(&self, range: RangeInclusive<f64>) -> Result<f64, ConfigError> {
        let value = self.value.get_ref();
        let digits = value.as_float().map(toml::de::DeFloat::as_str).or_else(|| {
            let decimal = value.as_integer().filter(|digits| digits.radix() == 10);
            decimal.map(toml::de::DeInteger::as_str)
        });
        digits
            .and_then(|digits| digits.parse().ok())
            .filter(|number| range.contains(number))
            .ok_or_else(|| {
                let (least, most) = (range.start(), range.end());
                self.must_be(&format!("a number from {least} to {most}"))
            })
    }

    /// True or false.
    pub fn truth(&self) -> Result<bool, ConfigError> {
        let value = self.value.get_ref().as_bool();
        value.ok_or_else(|| self.must_be("true or false"))
    }

    /// A list of texts.
    pub fn words(&self) -> Result<Vec<String>, ConfigError> {
        let list = self.value.get_ref().as_array();
        let words = list.and_then(|list| {
            let words = list.iter().map(|word| word.get_ref().as_str());
            words.map(|word| word.map(str::to_owned)).collect()
        });
        words.ok_or_else(|| self.must_be("a list of texts in quotes"))
    }

    /// The same in JSON.
    pub fn json(&self) -> Result<serde_json::Value, ConfigError> {
        json(self.value.get_ref()).ok_or_else(|| self.must_be("what JSON can say"))
    }

    /// A table.
    pub fn table(&self) -> Result<Table<'a>, ConfigError> {
        let table = self
            .value
            .get_ref()
            .as_table()
            .ok_or_else(|| self.must_be("a table"))?;
        let span = self.value.span();
        Ok(Table::new(self.source, self.key.clone(), span, table))
    }

    /// Tables, as `[[key]]` writes them.
    pub fn tables(&self) -> Result<Vec<Table<'a>>, ConfigError> {
        let items = self.value.get_ref().as_array();
        items
            .and_then(|items| {
                let tables = items.iter().map(|item| {
                    let table = item.get_ref().as_table()?;
                    Some(Table::new(
                        self.source,
                        self.key.clone(),
                        item.span(),
                        table,
                    ))
                });
                tables.collect()
            })
            .ok_or_else(|| self.must_be(&format!("written as [[{}]]", self.key)))
    }
}

/// A value as JSON has it. `None` where it has no such.
fn json(value: &DeValue<'_>) -> Option<serde_json::Value> {
    use serde_json::Value;
    Some(match value {
        DeValue::String(text) => Value::from(text.as_ref()),
        DeValue::Integer(digits) => {
            Value::from(i64::from_str_radix(digits.as_str(), digits.radix()).ok()?)
        }
        DeValue::Float(digits) => Value::from(digits.as_str().parse::<f64>().ok()?),
        DeValue::Boolean(truth) => Value::from(*truth),
        DeValue::Datetime(_) => return None,
        DeValue::Array(items) => {
            let items = items.iter().map(|item| json(item.get_ref()));
            Value::Array(items.collect::<Option<_>>()?)
        }
        DeValue::Table(table) => {
            let entries = table
                .iter()
                .map(|(key, value)| Some((key.get_ref().to_string(), json(value.get_ref())?)));
            Value::Object(entries.collect::<Option<_>>()?)
        }
    })
}

/// The known key that `key` was probably meant to be.
fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(key, candidate), *candidate))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}
