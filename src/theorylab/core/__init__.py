"""Data and contracts: what the other layers speak of. No algorithms, and no import of torch until a Problem or Operator is used."""
