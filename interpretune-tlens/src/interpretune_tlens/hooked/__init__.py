"""``HookedTransformer``: how it is made, generates, and is replayed.

TransformerLens has the class before version 4. All that version 4 has removed is imported in this package, and the
package only once a model of that class is asked for or there.
"""
