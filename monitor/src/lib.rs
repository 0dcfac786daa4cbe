//! x
mod framer;
mod json;
mod print;
mod request;
