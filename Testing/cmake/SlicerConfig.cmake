# A stand-in for a Slicer build, so that CMake can configure, install and package the extension where there is none:
#   cmake -S . -B build/extension -DSlicer_DIR=$PWD/Testing/cmake
# Only what this extension's CMake files call is here. Behaviour follows Slicer's and CTK's macros; what they refuse, such
# as a file that is not there, is refused here too.
set(Slicer_FOUND TRUE)
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR lib/Slicer-5.12/qt-scripted-modules)
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR lib/Slicer-5.12/qt-scripted-modules)
set(Slicer_USE_FILE ${CMAKE_CURRENT_LIST_DIR}/UseSlicer.cmake)
set(Slicer_EXTENSION_GENERATE_CONFIG ${CMAKE_CURRENT_LIST_DIR}/GenerateConfig.cmake)
set(Slicer_EXTENSION_CPACK ${CMAKE_CURRENT_LIST_DIR}/ExtensionCPack.cmake)
