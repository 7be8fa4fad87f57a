"""Fault injection: interrupt a study on purpose and compare its end with an unbroken one."""
