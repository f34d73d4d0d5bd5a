mod bench;
mod malformed;
mod session;
mod timing;
