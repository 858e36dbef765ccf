"""Validators of the messages that the AsyncAPI document describes, for unit and cluster tests."""

from functools import cache

from jsonschema_rs import Draft7Validator

from broker.asyncapi import document


@cache
def validator(word: str, part: str) -> Draft7Validator:
    """Of a message's ``payload`` or ``headers``; references lead into the document."""
    page = document()
    reference = {"$ref": f"#/components/messages/{word}/{part}"}
    return Draft7Validator({"components": page["components"], "allOf": [reference]}, validate_formats=True)
