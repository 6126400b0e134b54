//! What a store promises, told of every kind of store there is.

#[cfg(test)]
mod child;
#[cfg(test)]
#[path = "../postgres/cluster.rs"]
mod cluster;
#[cfg(test)]
mod conformance;
#[cfg(test)]
mod copy;
#[cfg(test)]
mod model;
#[cfg(test)]
mod postgres;
#[cfg(test)]
mod rows;
#[cfg(test)]
mod schemas;
#[cfg(test)]
mod sqlite;
