//! Prints what a machine does, and then what happens to it: `status QMP-SOCKET`.

use sesame_qmp::Client;
use sesame_qmp::run_state::QueryStatus;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("status QMP-SOCKET")?;
    let mut qmp = Client::connect(path)?;
    let status = qmp.execute(QueryStatus)?.status;
    println!("{} is {status:?}", qmp.version().package);
    for event in qmp.events() {
        println!("{:?}", event?.event);
    }
    Ok(())
}
