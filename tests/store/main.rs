//! What a store promises, told of every kind of store there is.

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod model;
#[cfg(test)]
mod rows;
#[cfg(test)]
mod sqlite;
